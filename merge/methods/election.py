"""Sign election (TIES-Merging, Yadav et al., NeurIPS 2023, arXiv 2306.01708): shared by the methods that end in it."""

from collections.abc import Callable

import torch
from torch import Tensor

from merge.methods.vectors import PerTask, TaskVectors, blocks

Trim = Callable[[str, Tensor, slice], Tensor]
"""(task, whole flat vector, piece) to that piece with the entries that were trimmed away at 0."""


def elect(base: Tensor, vectors: TaskVectors, weight: PerTask, normalize: bool, trim: Trim | None = None) -> Tensor:
    """Elect a sign for each entry and merge the weighted task vectors that agree with it.

    Semantics: s = sign(Σ_i w_i τ_i), + for 0; A = {i: sign(w_i τ_i) = s}; Σ_{i ∈ A} w_i τ_i / Σ_{i ∈ A} w_i, 0 if no
    task agrees. Without `normalize`, or if the weights of A sum to 0, the division is left out. Zeros agree with
    nothing. A negative weight reverses its task's vote, as in mergekit.

    It goes through each vector piece by piece: intermediate results in the processor's cache instead of in memory make
    it several times faster.

    Args:
        base: only its shape and dtype are used.
        vectors: τ_i; iterated twice.
        weight: w_i.
        normalize: average instead of sum.
        trim: applied to each piece first.

    Returns:
        The merged task vector, of the base's shape and dtype.
    """
    size = base.numel()
    total, merged = base.new_zeros(size), base.new_zeros(size)
    weights = base.new_zeros(size) if normalize else merged
    piece = trim or (lambda _task, flat, at: flat[at])
    for task, vector in vectors:
        flat = vector.reshape(-1)
        for at in blocks(size):
            total[at].add_(piece(task, flat, at), alpha=weight[task])
    for task, vector in vectors:
        flat = vector.reshape(-1)
        upright = weight[task] >= 0
        for at in blocks(size):
            part = piece(task, flat, at)
            agrees = (part != 0) & ((part > 0) == ((total[at] >= 0) == upright))
            merged[at].add_(part * agrees, alpha=weight[task])
            if normalize:
                weights[at].add_(agrees, alpha=weight[task])
    if normalize:
        for at in blocks(size):
            merged[at].div_(torch.where(weights[at] == 0, 1, weights[at]))
    return merged.view(base.shape)
