"""A task as a plain Hugging Face directory: the backbone's weights with the expert's residual added in."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from merge.bundle import Bundle, BundleError, Expert
from merge.bundle.files import new_directory
from merge.checkpoint import Checkpoint, CheckpointWriter, TensorSpec, copy_settings, open_checkpoint
from merge.export.generation import write_generation


@dataclass(frozen=True)
class DenseReport:
    """What was written.

    Attributes:
        out: the directory.
        task: the expert's name.
        dtype: of the weights that the expert changes, as stored.
        bytes: of all tensors.
        rounding: ‖stored − exact‖ / ‖E‖ over the changed weights: how much of the residual the dtype's rounding costs.
    """

    out: Path
    task: str
    dtype: str
    bytes: int
    rounding: float


def export_dense(bundle: Bundle, task: str, out: Path, dtype: torch.dtype | None = None) -> DenseReport:
    """Write θ_m + E as a checkpoint, with the backbone's config and tokenizer and the expert's generation settings.

    Memory: one tensor in float32 beside the expert.

    Args:
        bundle: the bundle.
        task: the expert's name.
        out: a directory that does not exist or is empty.
        dtype: of the floating-point weights; None: each in the backbone's own.

    Raises:
        BundleError: no such expert, a residual that fits no tensor of the backbone, or `out` is in use.
        CheckpointError: the backbone cannot be read.
    """
    expert, backbone = bundle.read_expert(task), open_checkpoint(bundle.backbone_dir)
    check_fits(expert, backbone)
    specs = [TensorSpec(name, dtype or info.dtype, info.shape) for name, info in backbone.tensors.items()]
    specs += [TensorSpec(name, info.dtype, info.shape) for name, info in backbone.buffers.items()]
    planned = {spec.name: spec.dtype for spec in specs}
    lost = size = 0.0
    with new_directory(out) as directory:
        with CheckpointWriter(directory, specs) as writer:
            for name in writer.order:
                residual = residual_of(expert, name, backbone)
                tensor = backbone.tensor(name)
                if residual is not None:
                    exact = tensor.to(torch.float32) + residual
                    tensor = exact.to(planned[name])
                    lost += float((tensor.to(torch.float32) - exact).square().sum(dtype=torch.float64))
                    size += float(residual.square().sum(dtype=torch.float64))
                writer.write(name, tensor)
        copy_settings(backbone.path, directory)
        write_generation(directory, expert.settings)
        if dtype is not None:
            _declare(directory / "config.json", dtype)
        if backbone.quantised:
            _forget_quantisation(directory / "config.json")
    changed = {str(planned[name]).removeprefix("torch.") for name in (*expert.matrices, *expert.dense)}
    return DenseReport(
        out=out,
        task=task,
        dtype=", ".join(sorted(changed)),
        bytes=sum(spec.nbytes for spec in specs),
        rounding=(lost / size) ** 0.5 if size else 0.0,
    )


def check_fits(expert: Expert, backbone: Checkpoint) -> None:
    """Check that every residual has its tensor.

    Raises:
        BundleError: a name or a shape does not fit.
    """
    for name in (*expert.matrices, *expert.dense):
        info = backbone.tensors.get(name)
        if info is None:
            raise BundleError(f"expert {expert.name!r} has a residual for {name}, which the backbone does not have")
        if name in expert.dense:
            fits = expert.dense[name].shape == info.shape
        elif name in expert.low_rank:
            # A sparse part beside it was checked against the low-rank part when the expert was read.
            fits = expert.low_rank[name].shape == info.shape
        else:
            index = expert.sparse[name].index
            highest = int(index.to(torch.int64).max())
            fits = len(info.shape) == 2 and index.shape[0] == info.shape[0] and highest < info.shape[1]
        if not fits:
            raise BundleError(f"expert {expert.name!r}: the residual of {name} does not fit {list(info.shape)}")


def residual_of(expert: Expert, name: str, backbone: Checkpoint) -> Tensor | None:
    """The residual of one tensor, dense, float32; None if the expert leaves it alone."""
    if name in expert.sparse or name in expert.low_rank:
        return expert.matrix(name, backbone.tensors[name].shape[1])
    return expert.dense.get(name)


def _forget_quantisation(path: Path) -> None:
    config = json.loads(path.read_bytes())
    del config["quantization_config"]
    path.write_text(json.dumps(config, indent=2) + "\n")


def _declare(path: Path, dtype: torch.dtype) -> None:
    config = json.loads(path.read_bytes())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n")
