"""Sign election (TIES-Merging, Yadav et al., NeurIPS 2023, arXiv 2306.01708): shared by the methods that end in it."""

import torch
from torch import Tensor

from merge.methods.vectors import PerTask, TaskVectors, weighted_sum


def elect(base: Tensor, vectors: TaskVectors, weight: PerTask, normalize: bool) -> Tensor:
    """Elect a sign for each entry and merge the task vectors that agree with it.

    Semantics: s = sign(Σ_i w_i τ_i), + for 0; Σ_{i: sign τ_i = s} w_i τ_i / Σ_{i: sign τ_i = s} w_i, 0 where no task
    agrees. Without `normalize` the division is left out. Zeros agree with nothing.

    Args:
        base: only its shape and dtype are used.
        vectors: τ_i; iterated twice.
        weight: w_i.
        normalize: average instead of sum.

    Returns:
        The merged task vector, of the base's shape and dtype.
    """
    positive = weighted_sum(base, vectors, weight) >= 0
    merged, weights = torch.zeros_like(base), torch.zeros_like(base)
    for task, vector in vectors:
        agrees = (vector != 0) & ((vector > 0) == positive)
        merged.add_(vector * agrees, alpha=weight[task])
        weights.add_(agrees, alpha=weight[task])
    return merged.div_(torch.where(weights == 0, 1, weights)) if normalize else merged
