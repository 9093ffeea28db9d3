"""A task as a LoRA of the backbone, in the form that PEFT writes and vLLM and LoRAX read."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merge.bundle import Bundle, BundleError, Expert
from merge.bundle.files import new_directory
from merge.checkpoint import TIED, Checkpoint, open_checkpoint
from merge.export.dense import check_fits, residual_of
from merge.export.generation import write_generation
from merge.export.low_rank import Factors, low_rank, own_factors

PREFIX = "base_model.model."
LOOKED_UP = ("embed_tokens", "wte", "word_embeddings", "embed_in")
"""Modules that are looked up by row: PEFT names and transposes their factors in another way."""

RECORD = "overtone.json"


class MissingRankError(ValueError):
    """No rank was given for an expert whose residuals are not of low rank. The message is one line."""


@dataclass(frozen=True)
class AdapterReport:
    """What was written, and what it costs.

    Attributes:
        out: the directory.
        task: the expert's name.
        rank: R.
        bytes: of the adapter's tensors.
        lossless: every 2-D residual is in the adapter, with the expert's own factors.
        error: ‖E − B A‖ / ‖E‖ over all 2-D residuals, those left out counting in full.
        layers: the same of each weight.
        kept_whole: 1-D parameters stored whole, in modules_to_save.
        dropped: parameters whose residual is not in the adapter, with the residual's norm over the parameter's.
    """

    out: Path
    task: str
    rank: int
    bytes: int
    lossless: bool
    error: float
    layers: Mapping[str, float]
    kept_whole: tuple[str, ...]
    dropped: Mapping[str, float]


def export_adapter(bundle: Bundle, task: str, out: Path, rank: int | None = None, norms: bool = False) -> AdapterReport:
    """Write an expert as a LoRA whose base is the bundle's backbone.

    A weight with a low-rank part alone keeps its factors, filled up with zeros to R, so that alpha / r is 1 everywhere
    and any loader can read them; the scales go into B. All others are brought to rank R.

    Args:
        bundle: the bundle.
        task: the expert's name.
        out: a directory that does not exist or is empty.
        rank: R of every weight; None: the largest of the expert's own, if no linear layer has a sparse part.
        norms: store changed norms whole in modules_to_save, which PEFT loads; vLLM refuses such adapters.

    Raises:
        BundleError: no such expert, a residual that fits no tensor of the backbone, none that a LoRA could hold, or
            `out` is in use.
        MissingRankError: no rank, and a linear layer has a sparse part.
        ValueError: a rank under 1.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"an adapter needs a rank of at least 1, not {rank}")
    expert, backbone = bundle.read_expert(task), open_checkpoint(bundle.backbone_dir)
    check_fits(expert, backbone)
    held = [name for name in expert.matrices if not _is_looked_up(name) or name not in expert.sparse]
    if not held:
        raise BundleError(f"expert {task!r} changes no linear layer: there is nothing that a LoRA could hold")
    if rank is None:
        sparse = [name for name in held if name in expert.sparse]
        if sparse:
            raise MissingRankError(
                f"an adapter needs a rank, as in --rank 16: expert {task!r} has a sparse part in {sparse[0]}"
            )
        rank = max(expert.low_rank[name].rank for name in held)
    copies = {name: copy for name in held if (copy := _tied_copy(name, backbone)) is not None}
    modules = sorted({_kind(name) for name in (*held, *copies.values())})
    saved = sorted(name for name in expert.dense if norms and name.endswith("norm.weight"))
    tensors: dict[str, Tensor] = {}
    layers: dict[str, float] = {}
    lost = size = 0.0
    for name, info in sorted(backbone.tensors.items()):
        # PEFT puts an adapter on every module of a kind, so a weight that the expert leaves alone has one of zeros.
        if len(info.shape) == 2 and _kind(name) in modules:
            factors = _factors(expert, name, backbone, rank)
            tensors |= _named(name, factors)
            if name in copies:
                tensors |= _named(copies[name], factors)
            if name in held:
                layers[name] = round(factors.error, 6)
            lost, size = lost + factors.lost, size + factors.size
    tensors = _narrowed(tensors, expert) | _whole(backbone, expert, saved)
    dropped = [name for name in (*expert.matrices, *expert.dense) if name not in saved and name not in layers]
    for name in set(dropped) - expert.dense.keys():
        norm = float(_residual(expert, name, backbone).square().sum(dtype=torch.float64))
        lost, size = lost + norm, size + norm
    report = AdapterReport(
        out=out,
        task=task,
        rank=rank,
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        lossless=set(layers) == set(expert.matrices) and all(_keeps_its_factors(expert, name, rank) for name in layers),
        error=(lost / size) ** 0.5 if size else 0.0,
        layers=layers,
        kept_whole=tuple(saved),
        dropped={name: _relative(expert, name, backbone) for name in dropped},
    )
    with new_directory(out) as directory:
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_json(directory / "adapter_config.json", _config(bundle, rank, modules, saved))
        write_generation(directory, expert.settings)
        record = {key: value for key, value in asdict(report).items() if key != "out"}
        origin = {"backbone_digest": expert.backbone_digest, "expert_digest": bundle.card(task).digest}
        _write_json(directory / RECORD, {**record, **origin})
    return report


def _factors(expert: Expert, name: str, backbone: Checkpoint, rank: int) -> Factors:
    if _keeps_its_factors(expert, name, rank):
        return own_factors(expert.low_rank[name], rank)
    return low_rank(_residual(expert, name, backbone), rank)


def _keeps_its_factors(expert: Expert, name: str, rank: int) -> bool:
    return name in expert.low_rank and name not in expert.sparse and expert.low_rank[name].rank <= rank


def _residual(expert: Expert, name: str, backbone: Checkpoint) -> Tensor:
    residual = residual_of(expert, name, backbone)
    return torch.zeros(backbone.tensors[name].shape) if residual is None else residual


def _named(name: str, factors: Factors) -> dict[str, Tensor]:
    """The factors of a weight under their names in the file, in separate memory."""
    module = PREFIX + name.removesuffix(".weight")
    if _is_looked_up(name):  # PEFT adapts the transposed embedding: A is [R, V] and B [H, R]
        a, b, names = factors.b.T, factors.a.T, ("lora_embedding_A", "lora_embedding_B")
    else:
        a, b, names = factors.a, factors.b, ("lora_A.weight", "lora_B.weight")
    return {
        f"{module}.{key}": part.clone(memory_format=torch.contiguous_format)
        for key, part in zip(names, (a, b), strict=True)
    }


def _narrowed(tensors: dict[str, Tensor], expert: Expert) -> dict[str, Tensor]:
    """The factors in the expert's dtype if that represents them exactly, else in float32."""
    dtypes = {delta.a.dtype for delta in expert.low_rank.values()}
    if len(dtypes) != 1 or not (dtype := dtypes.pop()).is_floating_point:
        return tensors
    narrow = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    exact = all(torch.equal(narrow[name].to(torch.float32), tensor) for name, tensor in tensors.items())
    return narrow if exact else tensors


def _tied_copy(name: str, backbone: Checkpoint) -> str | None:
    """The output head that an embedding is used for as well: PEFT adapts lookup and head apart."""
    if not _is_looked_up(name) or backbone.config.get("tie_word_embeddings") is False:
        return None
    return next((copy for copy, of in TIED.items() if name in of and copy not in backbone.tensors), None)


def _whole(backbone: Checkpoint, expert: Expert, saved: list[str]) -> dict[str, Tensor]:
    """Norms with their delta, and those of the same kind without one: PEFT saves and loads all of a kind."""
    kinds = {_kind(name) for name in saved}
    names = [name for name, info in backbone.tensors.items() if len(info.shape) == 1 and _kind(name) in kinds]
    nothing = torch.zeros(())
    return {
        PREFIX + name: (backbone.tensor(name, torch.float32) + expert.dense.get(name, nothing)).contiguous()
        for name in sorted(names)
    }


def _config(bundle: Bundle, rank: int, modules: list[str], saved: list[str]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(bundle.backbone_dir.absolute()),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
        "modules_to_save": sorted({_kind(name) for name in saved}) or None,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }


def _kind(name: str) -> str:
    """How PEFT finds a module in every layer: the last part of its name, or all of it outside of the layers.

    PEFT compares the ends of names, and `norm` would match every norm there is.
    """
    module = name.removesuffix(".weight").removesuffix(".bias")
    return module.rpartition(".")[2] if re.search(r"\.\d+\.", module) else module


def _is_looked_up(name: str) -> bool:
    return any(part in name.split(".") for part in LOOKED_UP)


def _relative(expert: Expert, name: str, backbone: Checkpoint) -> float:
    norm = float(backbone.tensor(name, torch.float32).norm())
    return round(float(_residual(expert, name, backbone).norm()) / norm, 6) if norm else 0.0


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")
