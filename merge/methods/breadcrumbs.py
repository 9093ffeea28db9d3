"""Model Breadcrumbs (Davari and Belilovsky, ECCV 2024, arXiv 2312.06795): drop small entries and outliers."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from merge.methods.election import elect
from merge.methods.registry import method
from merge.methods.ties import Cut, cut_to
from merge.methods.vectors import ONE, PerTask, TaskVectors, weighted_sum

USUAL_DENSITY = PerTask(0.5)
USUAL_GAMMA = PerTask(0.01)
"""Fraction of the largest entries that is dropped."""

Density = Annotated[PerTask, Field(gt=0, le=1)]
Gamma = Annotated[PerTask, Field(ge=0, lt=1)]


@method("breadcrumbs")
def breadcrumbs(
    _name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    density: Density = USUAL_DENSITY,
    gamma: Gamma = USUAL_GAMMA,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Drop the smallest entries and the largest ones of the task vectors, then add their weighted sum to the base.

    Semantics: θ₀ + λ Σ_i w_i b_i, b_i the ⌊d n⌋ entries of τ_i that are next in size to its ⌊γ n⌋ largest. If
    d + γ > 1, only n − ⌊d n⌋ of the largest are dropped. With `normalize` divided by Σ_i w_i, unless that is 0.

    Args:
        _name: the tensor's name; all tensors are treated alike.
        base: θ₀, any shape.
        vectors: τ_i.
        weight: w_i.
        density: d, fraction of the entries kept, above 0; 1 keeps all.
        gamma: γ, fraction of the largest that is dropped.
        normalize: divide by the weights' sum.
        lambda_: λ.
    """
    kept = vectors.map(lambda task, vector: _kept(vector, density[task], gamma[task]))
    total = sum(weight[task] for task in vectors.tasks)
    scale = lambda_ / total if normalize and total else lambda_
    return weighted_sum(base, kept, weight).mul_(scale).add_(base)


@method("breadcrumbs_ties")
def breadcrumbs_ties(
    _name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    density: Density = USUAL_DENSITY,
    gamma: Gamma = USUAL_GAMMA,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Drop the smallest entries and the largest ones, elect a sign for each entry, add up what agrees with it.

    Semantics: θ₀ + λ elect(b_1 … b_T), b_i as in `breadcrumbs`, the election as in `ties`.

    Args:
        _name: the tensor's name; all tensors are treated alike.
        base: θ₀, any shape.
        vectors: τ_i; iterated twice.
        weight: w_i.
        density: d, fraction of the entries kept, above 0; 1 keeps all.
        gamma: γ, fraction of the largest that is dropped.
        normalize: average instead of sum.
        lambda_: λ.
    """
    kept = vectors.map(lambda task, vector: _kept(vector, density[task], gamma[task]))
    return elect(base, kept, weight, normalize).mul_(lambda_).add_(base)


def _kept(vector: Tensor, density: float, gamma: float) -> Tensor:
    if density == 1:
        return vector
    flat = vector.reshape(-1)
    size = flat.numel()
    middle = max(1, int(density * size))
    top = min(int(gamma * size), size - middle)
    whole = slice(0, size)
    found = cut_to(flat, middle + top).trim(flat, whole)
    outliers: Cut | None = cut_to(flat, top) if top else None
    return (found if outliers is None else found - outliers.trim(flat, whole)).view(vector.shape)
