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
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.export.dense import check_fits, residual_of
from merge.export.low_rank import low_rank

PREFIX = "base_model.model."
LOOKED_UP = ("embed_tokens", "wte", "word_embeddings", "embed_in")
"""Modules that are looked up by row: a LoRA of a linear layer is no LoRA of theirs."""

RECORD = "overtone.json"


@dataclass(frozen=True)
class AdapterReport:
    """What was written, and what it costs.

    Attributes:
        out: the directory.
        task: the expert's name.
        rank: R.
        bytes: of the adapter's tensors.
        error: ‖E − B A‖ / ‖E‖ over all 2-D residuals, those left out counting in full.
        layers: the same of each weight.
        kept_whole: 1-D parameters stored whole, in modules_to_save.
        dropped: parameters whose residual is not in the adapter, with the residual's norm over the parameter's.
    """

    out: Path
    task: str
    rank: int
    bytes: int
    error: float
    layers: Mapping[str, float]
    kept_whole: tuple[str, ...]
    dropped: Mapping[str, float]


def export_adapter(bundle: Bundle, task: str, out: Path, rank: int, norms: bool = False) -> AdapterReport:
    """Write an expert as a LoRA whose base is the bundle's backbone.

    Args:
        bundle: the bundle.
        task: the expert's name.
        out: a directory that does not exist or is empty.
        rank: R of every weight.
        norms: store changed norms whole in modules_to_save, which PEFT loads; vLLM refuses such adapters.

    Raises:
        BundleError: no such expert, a residual that fits no tensor of the backbone, none that a LoRA could hold, or
            `out` is in use.
        ValueError: a rank under 1.
    """
    if rank < 1:
        raise ValueError(f"an adapter needs a rank of at least 1, not {rank}")
    expert, backbone = bundle.read_expert(task), open_checkpoint(bundle.backbone_dir)
    check_fits(expert, backbone)
    modules = sorted({_kind(name) for name in expert.sparse if not _is_looked_up(name)})
    if not modules:
        raise BundleError(f"expert {task!r} changes no linear layer: there is nothing that a LoRA could hold")
    saved = sorted(name for name in expert.dense if norms and name.endswith("norm.weight"))
    tensors, layers, lost, size = _factors(expert, backbone, modules, rank)
    tensors |= _whole(backbone, expert, saved)
    dropped = {
        name: _relative(expert, name, backbone)
        for name in (*expert.sparse, *expert.dense)
        if name not in saved and name not in layers
    }
    for name in dropped:
        if name in expert.sparse:
            norm = float(expert.sparse[name].numbers.square().sum(dtype=torch.float64))
            lost, size = lost + norm, size + norm
    report = AdapterReport(
        out=out,
        task=task,
        rank=rank,
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        error=(lost / size) ** 0.5 if size else 0.0,
        layers=layers,
        kept_whole=tuple(saved),
        dropped=dropped,
    )
    with new_directory(out) as directory:
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_json(directory / "adapter_config.json", _config(bundle, rank, modules, saved))
        record = {key: value for key, value in asdict(report).items() if key != "out"}
        origin = {"backbone_digest": expert.backbone_digest, "expert_digest": bundle.card(task).digest}
        _write_json(directory / RECORD, {**record, **origin})
    return report


def _factors(
    expert: Expert, backbone: Checkpoint, modules: list[str], rank: int
) -> tuple[dict[str, Tensor], dict[str, float], float, float]:
    """Tensors by their names in the file, the error of each weight, and the sums of ‖E − BA‖² and ‖E‖²."""
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    lost = size = 0.0
    for name, info in sorted(backbone.tensors.items()):
        if len(info.shape) != 2 or _kind(name) not in modules:
            continue
        residual = residual_of(expert, name, backbone)
        # PEFT puts an adapter on every module of a kind, so a weight that the expert leaves alone has one of zeros.
        factors = low_rank(torch.zeros(info.shape) if residual is None else residual, rank)
        module = PREFIX + name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = factors.a, factors.b
        if residual is not None:
            errors[name] = round(factors.error, 6)
            lost, size = lost + factors.lost, size + factors.size
    return tensors, errors, lost, size


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
    residual = expert.dense[name] if name in expert.dense else expert.sparse[name].numbers
    norm = float(backbone.tensor(name, torch.float32).norm())
    return round(float(residual.norm()) / norm, 6) if norm else 0.0


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")
