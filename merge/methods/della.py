"""DELLA (Deep et al., 2024, arXiv 2406.11617): drop entries at random, small ones more often, and rescale the rest."""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merge.methods.dare import Seed, uniform
from merge.methods.election import elect
from merge.methods.registry import always, method
from merge.methods.task_arithmetic import USUAL
from merge.methods.vectors import ONE, PerTask, TaskVectors, weighted_sum

USUAL_DENSITY = PerTask(0.5)
USUAL_EPSILON = PerTask(0.15)

Density = Annotated[PerTask, Field(gt=0, le=1)]
Epsilon = Annotated[PerTask, Field(ge=0, lt=0.5)]


@method("della", by_rows=always)
def della(
    name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    density: Density = USUAL_DENSITY,
    epsilon: Epsilon = USUAL_EPSILON,
    rescale: bool = True,
    normalize: bool = True,
    lambda_: float = 1.0,
    seed: Seed = 0,
) -> Tensor:
    """Drop small entries more often than large ones, elect a sign for each entry, average what agrees with it.

    Semantics: θ₀ + λ elect(d_1 … d_T), d_i as in `della_linear`, the election as in `ties`.

    Args:
        name: the tensor's name; part of the masks' seed.
        base: θ₀, any shape.
        vectors: τ_i; iterated twice.
        weight: w_i.
        density: d, the mean probability that an entry is kept; 1 keeps all.
        epsilon: ε, half of the range of these probabilities.
        rescale: divide by the probability.
        normalize: average instead of sum.
        lambda_: λ.
        seed: of the masks, as for `dare_ties`.

    Raises:
        ValueError: d − ε and d + ε are not within 0 and 1.
    """
    dropped = vectors.map(_dropper(name, density, epsilon, rescale, seed, vectors.first_row))
    return elect(base, dropped, weight, normalize).mul_(lambda_).add_(base)


@method("della_linear", by_rows=always)
def della_linear(
    name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = USUAL,
    density: Density = USUAL_DENSITY,
    epsilon: Epsilon = USUAL_EPSILON,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
    seed: Seed = 0,
) -> Tensor:
    """Drop small entries of the task vectors more often than large ones, then add their weighted sum to the base.

    Semantics: θ₀ + λ Σ_i w_i d_i, d_i = m_i ∘ τ_i / p_i, m_i of independent Bernoulli(p_i) entries, and in each row p_i
    rises linearly from d − ε for the smallest |entry| to d + ε for the largest. Without `rescale` the division is left
    out. With `normalize` divided by Σ_i w_i, unless that is 0.

    Args:
        name: the tensor's name; part of the masks' seed.
        base: θ₀, any shape.
        vectors: τ_i.
        weight: w_i.
        density: d, the mean probability that an entry is kept; 1 keeps all.
        epsilon: ε, half of the range of these probabilities.
        rescale: divide by the probability, so that d_i is τ_i in expectation.
        normalize: divide by the weights' sum.
        lambda_: λ.
        seed: of the masks, as for `dare_linear`.

    Raises:
        ValueError: d − ε and d + ε are not within 0 and 1.
    """
    dropped = vectors.map(_dropper(name, density, epsilon, rescale, seed, vectors.first_row))
    total = sum(weight[task] for task in vectors.tasks)
    scale = lambda_ / total if normalize and total else lambda_
    return weighted_sum(base, dropped, weight).mul_(scale).add_(base)


def keep_probabilities(vector: Tensor, density: float, epsilon: float) -> Tensor:
    """The probability that each entry is kept, by the rank of its size in its row; a 1-D tensor is one row."""
    rows = vector.reshape(1, -1) if vector.ndim < 2 else vector
    last = max(rows.shape[1] - 1, 1)
    ranks = rows.abs().argsort(dim=1, stable=True).argsort(dim=1).to(vector.dtype) / last
    return (density - epsilon + 2 * epsilon * ranks).view(vector.shape)


def _dropper(
    name: str, density: PerTask, epsilon: PerTask, rescale: bool, seed: int, first_row: int
) -> Callable[[str, Tensor], Tensor]:
    def drop(task: str, vector: Tensor) -> Tensor:
        d, e = density[task], epsilon[task]
        if d == 1:
            return vector
        if not (d - e > 0 and d + e < 1):
            raise ValueError(f"della: density {d:g} and epsilon {e:g} must keep density ± epsilon between 0 and 1")
        probabilities = keep_probabilities(vector, d, e)
        drawn = uniform(tuple(vector.shape), seed, task, name, first_row).to(vector.device)
        kept = torch.where(drawn < probabilities, vector, 0.0)
        return kept.div_(probabilities) if rescale else kept

    return drop
