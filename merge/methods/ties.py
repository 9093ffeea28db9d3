"""TIES-Merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708)."""

from typing import Annotated

import numpy
from pydantic import Field
from torch import Tensor

from merge.methods.election import elect
from merge.methods.registry import method
from merge.methods.vectors import ONE, PerTask, TaskVectors

USUAL_DENSITY = PerTask(0.2)
"""Fraction of entries that the paper keeps."""


@method("ties")
def ties(
    _name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    density: Annotated[PerTask, Field(gt=0, le=1)] = USUAL_DENSITY,
    normalize: bool = True,
    lambda_: float = 1.0,
) -> Tensor:
    """Trim each task vector to its largest entries, elect a sign for each entry, average what agrees with it.

    Semantics: s = sign(Σ_i w_i t_i), + for 0; θ₀ + λ Σ_{i: sign t_i = s} w_i t_i / Σ_{i: sign t_i = s} w_i, where t_i
    is τ_i with all but the `density` largest |entries| of this tensor zeroed. Without `normalize` the division is left
    out. Trimming is per tensor (the paper trims a whole model at once).

    Args:
        _name: the tensor's name; all tensors are treated alike.
        base: θ₀, any shape.
        vectors: τ_i; iterated twice.
        weight: w_i.
        density: fraction of entries kept, above 0, at most 1.
        normalize: average instead of sum.
        lambda_: λ.
    """
    trimmed = vectors.map(lambda task, vector: trim(vector, density[task]))
    return elect(base, trimmed, weight, normalize).mul_(lambda_).add_(base)


def trim(vector: Tensor, density: float) -> Tensor:
    """Zero all but the ⌊density·n⌋ (at least 1) entries of largest magnitude; of equal ones the first stay."""
    flat = vector.reshape(-1)
    if density == 1 or flat.numel() == 0:
        return vector
    size = flat.abs()
    kept = max(1, int(density * flat.numel()))
    smallest = flat.numel() - kept
    # A partial sort: six times faster than sorting the 8 M entries of a matrix.
    threshold = float(numpy.partition(size.numpy(), smallest)[smallest])
    keep = size > threshold
    level = (size == threshold).nonzero().squeeze(1)
    keep[level[: kept - int(keep.sum())]] = True
    return flat.masked_fill(~keep, 0).view_as(vector)
