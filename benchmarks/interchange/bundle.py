"""The zoo's fine-tunes as low-rank experts of the zoo's base, and the same experts as LoRA directories."""

from pathlib import Path

import torch

from merge.bundle import (
    Bundle,
    BundleWriter,
    Expert,
    LowRankDelta,
    ManifestFields,
    backbone_digest,
    open_bundle,
    write_expert,
)
from merge.checkpoint import Checkpoint, copy_settings, open_checkpoint
from merge.export import export_adapter
from merge.export.low_rank import low_rank
from serve.demo.tiny import fine_tune_dirs, models_dir
from serve.demo.zoo.tasks import TASKS

RANK = 16


def write_bundle(path: Path) -> Bundle:
    """Write a bundle of the base and, of each fine-tune, an expert of rank `RANK` on every linear layer.

    Every second expert has 8-bit factors, the others bfloat16 ones, as merging writes them.
    """
    base = open_checkpoint(models_dir() / "base")
    with BundleWriter(path) as staging:
        backbone = staging.path / "backbone"
        backbone.mkdir(exist_ok=True)
        copy_settings(base.path, backbone)
        for shard in base.path.glob("*.safetensors"):
            (backbone / shard.name).write_bytes(shard.read_bytes())
        digest = backbone_digest(backbone)
        for number, (name, directory) in enumerate(fine_tune_dirs(task.name for task in TASKS).items()):
            expert = _expert(name, digest, base, open_checkpoint(directory), quantised=bool(number % 2))
            write_expert(staging.path / "experts" / f"{name}.safetensors", expert)
        staging.finish(ManifestFields(name="interchange"))
    return open_bundle(path)


def export_adapters(bundle: Bundle, folder: Path) -> dict[str, float]:
    """Write each expert as a PEFT directory below `folder`: the relative error of each, 0 if it is exact."""
    return {name: export_adapter(bundle, name, folder / name, RANK).error for name in bundle.expert_names}


def _expert(name: str, digest: str, base: Checkpoint, fine_tune: Checkpoint, quantised: bool) -> Expert:
    deltas = {}
    for weight, info in base.tensors.items():
        if len(info.shape) == 2 and ".layers." in weight:
            change = fine_tune.tensor(weight, torch.float32) - base.tensor(weight, torch.float32)
            factors = low_rank(change, RANK)
            deltas[weight] = _stored(factors.a, factors.b, quantised)
    return Expert(name, digest, 0.0, {}, {}, low_rank=deltas)


def _stored(a: torch.Tensor, b: torch.Tensor, quantised: bool) -> LowRankDelta:
    if not quantised:
        return LowRankDelta(a.to(torch.bfloat16), b.to(torch.bfloat16), torch.ones(RANK))
    rows = a.abs().amax(dim=1).clamp_min(1e-12) / 127
    columns = b.abs().amax(dim=0).clamp_min(1e-12) / 127
    return LowRankDelta(
        (a / rows[:, None]).round().to(torch.int8), (b / columns).round().to(torch.int8), rows * columns
    )
