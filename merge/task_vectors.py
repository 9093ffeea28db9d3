"""The task vectors of one tensor, read from checkpoints: as differences, and as factors where a fine-tune is a LoRA."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from merge.checkpoint import Checkpoint
from merge.lora import AdaptedCheckpoint
from merge.methods import TaskVectors
from merge.methods.vectors import Factors


def task_vectors(
    name: str,
    base: Checkpoint,
    fine_tunes: Mapping[str, Checkpoint],
    origin: Tensor,
    read: Callable[[str], Tensor] | None = None,
    add: Callable[[str, Tensor, float], object] | None = None,
) -> TaskVectors:
    """What a method gets of one tensor.

    Args:
        name: the tensor's.
        base: θ₀.
        fine_tunes: θ_k by name.
        origin: the base's tensor, in the dtype of the arithmetic.
        read: a task's vector; None: the difference of the two tensors.
        add: as `TaskVectors` takes it.
    """
    dtype = origin.dtype
    return TaskVectors(
        list(fine_tunes),
        read or (lambda task: fine_tunes[task].tensor(name, dtype) - origin),
        add,
        factors=lambda task: _factors(name, base, fine_tunes[task], dtype),
        stored=lambda task: _stored(name, fine_tunes[task], dtype),
    )


def _factors(name: str, base: Checkpoint, fine_tune: Checkpoint, dtype: torch.dtype) -> Factors | None:
    """A task vector as a product, where the fine-tune is a LoRA that sits on the base itself."""
    if not isinstance(fine_tune, AdaptedCheckpoint) or fine_tune.model.path.resolve() != base.path.resolve():
        return None
    found = fine_tune.factors(name, dtype)
    return None if found is None else Factors(*found)


def _stored(name: str, fine_tune: Checkpoint, dtype: torch.dtype) -> torch.dtype:
    """What a tensor was last rounded to: the dtype of its file; an adapted one, which is computed, the arithmetic's."""
    return dtype if isinstance(fine_tune, AdaptedCheckpoint) else fine_tune.tensors[name].dtype
