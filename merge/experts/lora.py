"""An expert that is the fine-tune's own LoRA: as its file has it, or its directions in the expert's storage."""

from collections.abc import Mapping

import torch

from merge.bundle import LowRankDelta
from merge.checkpoint import Checkpoint
from merge.experts.low_rank import MOST_RANK, Directions, direction_bytes, directions, stored
from merge.experts.sources import Sources
from merge.experts.storage import Storage
from merge.lora import AdaptedCheckpoint
from merge.methods.vectors import Factors, row_blocks
from merge.task_vectors import lora_factors


def why_no_lora(base: Checkpoint, fine_tune: Checkpoint) -> str | None:
    """Why a fine-tune is not just a LoRA on the base; None: it is."""
    if not isinstance(fine_tune, AdaptedCheckpoint):
        return f"{fine_tune.path} is a full checkpoint"
    if fine_tune.model.path.resolve() != base.path.resolve():
        return f"{fine_tune.path} was trained on {fine_tune.model.path}"
    for name, change in sorted(fine_tune.adapter.changes.items()):
        if change.magnitude is not None:
            return f"{fine_tune.path} is a DoRA"
        if len(base.tensors[name].shape) != 2:
            return f"{fine_tune.path} changes {name}, which is not 2-D"
    for name in sorted(fine_tune.adapter.replacements):
        if len(base.tensors[name].shape) != 1:
            return f"{fine_tune.path} replaces {name} as a whole"
    return None


def keeps_base(backbone: Checkpoint, sources: Sources, name: str) -> bool:
    """Whether a backbone, stored or not rounded yet, has the base's own numbers in one tensor.

    It is compared once for all experts that are cut in a process.
    """
    key = backbone.path, name
    if key not in sources.kept:
        sources.kept[key] = _equal(backbone, sources.base, name)
    return sources.kept[key]


def _equal(one: Checkpoint, other: Checkpoint, name: str) -> bool:
    stored = one.is_mapped(name) and other.is_mapped(name) and one.tensors[name].dtype == other.tensors[name].dtype
    dtype = None if stored else torch.float32  # of one dtype, the files are compared as they are
    return all(
        torch.equal(one.tensor(name, dtype, check=False, rows=rows), other.tensor(name, dtype, check=False, rows=rows))
        for rows in row_blocks(other.tensors[name].shape)
    )


def own_factors(fine_tune: Checkpoint, sources: Sources, name: str) -> Factors | None:
    """θ_k − θ_m of a 2-D weight as factors, float32, of a LoRA on the base; None if the merge changed the weight."""
    found = lora_factors(name, sources.base, fine_tune, torch.float32)
    return found if found is not None and keeps_base(sources.merged or sources.backbone, sources, name) else None


def lora_parts(fine_tune: Checkpoint, sources: Sources) -> dict[str, LowRankDelta] | None:
    """The LoRA's factors as they are stored, with alpha / r as their scale.

    Returns:
        By weight. None if the expert cannot be that LoRA: the fine-tune is something else, the backbone is not the
        base in some weight, or a weight that the LoRA changes gets no residual.
    """
    if why_no_lora(sources.base, fine_tune) is not None or not isinstance(fine_tune, AdaptedCheckpoint):
        return None
    if not set(fine_tune.adapter.changes) <= set(sources.weights()) or not _on_base(sources):
        return None
    parts = {}
    for name in sorted(fine_tune.adapter.changes):
        found = fine_tune.stored_factors(name)
        assert found is not None  # `why_no_lora` has seen to it
        left, right, scale = found
        parts[name] = LowRankDelta(
            right.contiguous(), left.contiguous(), torch.full((len(right),), scale, device=right.device)
        )
    return parts


def whole_directions(own: Mapping[str, LowRankDelta], storage: Storage, room: int) -> dict[str, Directions] | None:
    """All directions of a LoRA, float32.

    Args:
        own: `lora_parts`.
        storage: of the factors in the expert's file.
        room: bytes that they may take there.

    Returns:
        By weight. None if they take more, or if a rank is above `MOST_RANK`.
    """
    size = sum(part.rank * direction_bytes(len(part.b), part.a.shape[1], storage) for part in own.values())
    if size > room or any(part.rank > MOST_RANK for part in own.values()):
        return None
    found = {
        name: directions(Factors(part.b.float() * part.scale.float(), part.a.float()), MOST_RANK)
        for name, part in own.items()
    }
    return {name: best for name, best in found.items() if len(best.a)}


def rounded_parts(own: Mapping[str, LowRankDelta], storage: Storage, room: int) -> dict[str, LowRankDelta] | None:
    """A LoRA with all its directions, its factors in the storage of experts.

    Nothing but the rounding of the factors is lost, so there is nothing that could be fitted to prompts.

    Args, returns:
        As for `whole_directions`.
    """
    found = whole_directions(own, storage, room)
    return None if found is None else {name: stored(best.b, best.a, storage) for name, best in found.items()}


def _on_base(sources: Sources) -> bool:
    """Whether the merge is the base. Rounding it to few bits leaves the LoRA as good as it was (docs/experts.md)."""
    return all(keeps_base(sources.merged or sources.backbone, sources, name) for name in sources.base.tensors)
