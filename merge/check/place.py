"""Checks of the bundle's destination, the free disk space and the free memory."""

import os
import shutil
import tempfile
from math import prod
from pathlib import Path

import torch

from merge.bundle import BundleError, BundleWriter, available_host_bytes
from merge.check.finding import Finding, errors, unreadable, warnings
from merge.check.general import too_large
from merge.check.inputs import Inputs
from merge.checkpoint import Checkpoint
from merge.lora import AdaptedCheckpoint

ENTRY_BYTES = 6
"""Most bytes of an entry of an expert with a density: a 32-bit column and a 16-bit value."""

FRANK_WOLFE_BYTES = 16
"""Memory of Frank-Wolfe for each parameter: model, gradient and iterate in float32, and the work on a tensor."""

SLACK = 64 << 20
"""Bytes for headers, tokenizer, router and rounding."""


def check_target(out: Path, overwrite: bool) -> list[Finding]:
    """Look at the output's directory, and at the one that it would be created in."""
    try:
        BundleWriter(out, overwrite).check_target()
        folder = _existing(out.absolute().parent)
    except BundleError as error:
        return errors("output", [str(error)])
    except OSError as error:
        return unreadable("output", error)
    if not os.access(folder, os.W_OK | os.X_OK):
        return errors("output", [f"{folder} cannot be written to: choose another path"])
    return []


def check_room(out: Path, inputs: Inputs) -> list[Finding]:
    """Compare the bundle's size, at most, with what the output's file system has left.

    An old bundle is replaced only when the new one is complete, so its disk space does not count.
    """
    wide = 4 * sum(prod(info.shape) for info in inputs.base.tensors.values())
    needed = bundle_bytes(inputs)
    if inputs.recipe.chooses_scale and not too_large(inputs.base):
        needed = max(needed, wide)  # a copy of the model, which goes before the bundle's parts come
    if inputs.recipe.quantisation is not None:
        needed += wide  # the merge before it is rounded, which experts are cut from
    found = _room(out.absolute().parent, needed + SLACK, "the bundle")
    config = inputs.recipe.frank_wolfe()
    if config is not None and config.init != "base":
        found += _room(Path(tempfile.gettempdir()), wide, "Frank-Wolfe's starting point")
    return found


def check_memory(inputs: Inputs) -> list[Finding]:
    """Compare what the merge may take with the memory that is free within the limits of control groups.

    The estimates are generous: half of one is certainly needed, and less than that is an error.
    """
    free = available_host_bytes()
    runs_models = inputs.experts.needs_prompts and inputs.prompts is not None
    advice = "; experts without prompts (selection: residual) need far less" if runs_models else ""
    found = _memory(free, inputs.job_bytes(), "cutting an expert", advice)
    if inputs.recipe.frank_wolfe() is not None:
        parameters = sum(prod(info.shape) for info in inputs.base.tensors.values())
        found += _memory(free, FRANK_WOLFE_BYTES * parameters, "frank_wolfe", "; other methods need far less")
    return found


def _memory(free: int, needed: int, what: str, advice: str) -> list[Finding]:
    if free >= needed:
        return []
    texts = [f"{what} may take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are available{advice}"]
    return warnings("memory", texts) if free >= needed // 2 else errors("memory", texts)


def bundle_bytes(inputs: Inputs) -> int:
    """Bytes of the backbone and of the experts, these at their largest."""
    base, merged = inputs.base, inputs.merged().tensors
    out = inputs.recipe.out_dtype
    backbone = sum(
        prod(info.shape) * (getattr(torch, out) if out and name in merged else info.dtype).itemsize
        for name, info in base.tensors.items()
    ) + sum(info.nbytes for info in base.buffers.values())
    return backbone + sum(_expert_bytes(inputs, item, backbone) for item in inputs.fine_tunes.values())


def _expert_bytes(inputs: Inputs, fine_tune: Checkpoint, backbone: int) -> int:
    merged, config = inputs.merged().tensors, inputs.experts
    norms = sum(4 * prod(info.shape) for info in merged.values() if len(info.shape) == 1)
    if config.form == "lora" and isinstance(fine_tune, AdaptedCheckpoint):
        return norms + sum(info.nbytes for info in fine_tune.adapter.tensors.values())
    if config.budget is not None:
        return norms + int(config.budget * backbone)
    matrices = (info.shape for info in merged.values() if len(info.shape) == 2)
    density = config.density or 0.0
    return norms + sum(rows * max(1, round(density * columns)) * ENTRY_BYTES for rows, columns in matrices)


def _existing(folder: Path) -> Path:
    """The nearest of a folder and its parents that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _room(folder: Path, needed: int, what: str) -> list[Finding]:
    folder = _existing(folder)
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    return errors(
        "output",
        [
            f"{folder} has {free / 1e9:.1f} GB free; {what} may take {needed / 1e9:.1f} GB: "
            "free some space, or choose another path"
        ],
    )
