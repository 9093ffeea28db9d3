"""The task vectors of one tensor, read from checkpoints: as differences, and as factors if a fine-tune is a LoRA."""

from collections.abc import Callable, Mapping
from typing import TypeGuard

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
    rows: slice | None = None,
) -> TaskVectors:
    """What a method gets of one tensor.

    Args:
        name: the tensor's.
        base: θ₀.
        fine_tunes: θ_k by name.
        origin: the base's tensor, in the dtype of the arithmetic.
        read: a task's vector; None: the difference of the two tensors.
        add: as `TaskVectors` takes it.
        rows: the rows of the tensor that `origin` holds; None: all.
    """
    dtype = origin.dtype
    return TaskVectors(
        list(fine_tunes),
        read or (lambda task: fine_tunes[task].tensor(name, dtype, rows=rows) - origin),
        add,
        factors=lambda task: lora_factors(name, base, fine_tunes[task], dtype, rows or slice(None)),
        stored=lambda task: _stored(name, fine_tunes[task], dtype),
        first_row=0 if rows is None else rows.start,
    )


def is_unchanged(name: str, base: Checkpoint, fine_tune: Checkpoint) -> bool:
    """Whether a fine-tune is known to leave a tensor as it is: a LoRA on the base that does not adapt it."""
    return _sits_on(fine_tune, base) and not fine_tune.changes(name)


def _sits_on(fine_tune: Checkpoint, base: Checkpoint) -> TypeGuard[AdaptedCheckpoint]:
    return isinstance(fine_tune, AdaptedCheckpoint) and fine_tune.model.path.resolve() == base.path.resolve()


def lora_factors(
    name: str, base: Checkpoint, fine_tune: Checkpoint, dtype: torch.dtype, rows: slice = slice(None)
) -> Factors | None:
    """A task vector as a product if the fine-tune is a LoRA that was trained on the base itself; else None.

    Args:
        name: the tensor's.
        base: θ₀.
        fine_tune: θ_k.
        dtype: of the factors.
        rows: of the task vector.
    """
    found = fine_tune.factors(name, dtype) if _sits_on(fine_tune, base) else None
    return None if found is None else Factors(found[0][rows], found[1])


def _stored(name: str, fine_tune: Checkpoint, dtype: torch.dtype) -> torch.dtype:
    """What a tensor was last rounded to: the dtype of its file; an adapted one, which is computed, the arithmetic's."""
    return dtype if isinstance(fine_tune, AdaptedCheckpoint) else fine_tune.tensors[name].dtype
