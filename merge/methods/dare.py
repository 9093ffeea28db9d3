"""DARE (Yu et al., ICML 2024, arXiv 2311.03099): drop most of each task vector at random, rescale the rest."""

import hashlib
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merge.methods.election import elect
from merge.methods.registry import always, method
from merge.methods.task_arithmetic import USUAL
from merge.methods.vectors import ONE, PerTask, TaskVectors, weighted_sum

USUAL_DENSITY = PerTask(0.5)
"""Dropping gives an entry (1 − d) / d times its square as variance: at one half, as much as the entry itself."""

Seed = Annotated[int, Field(ge=0)]


@method("dare_linear", by_rows=always)
def dare_linear(
    name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = USUAL,
    density: Annotated[PerTask, Field(gt=0, le=1)] = USUAL_DENSITY,
    rescale: bool = True,
    normalize: bool = False,
    lambda_: float = 1.0,
    seed: Seed = 0,
) -> Tensor:
    """Drop entries of the task vectors at random, then add their weighted sum to the base.

    Semantics: θ₀ + λ Σ_i w_i d_i, d_i = m_i ∘ τ_i / density, m_i of independent Bernoulli(density) entries; without
    `rescale` the division is left out. With `normalize` divided by Σ_i w_i, unless that is 0.

    Args:
        name: the tensor's name; part of the masks' seed.
        base: θ₀, any shape.
        vectors: τ_i.
        weight: w_i.
        density: probability that an entry is kept, above 0, at most 1.
        rescale: divide by the density, so that d_i is τ_i in expectation.
        normalize: divide by the weights' sum.
        lambda_: λ.
        seed: of the masks; see `keep_mask`.
    """
    dropped = vectors.map(_dropper(name, density, rescale, seed, vectors.first_row))
    total = sum(weight[task] for task in vectors.tasks)
    scale = lambda_ / total if normalize and total else lambda_
    return weighted_sum(base, dropped, weight).mul_(scale).add_(base)


@method("dare_ties", by_rows=always)
def dare_ties(
    name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    density: Annotated[PerTask, Field(gt=0, le=1)] = USUAL_DENSITY,
    rescale: bool = True,
    normalize: bool = True,
    lambda_: float = 1.0,
    seed: Seed = 0,
) -> Tensor:
    """Drop entries of the task vectors at random, elect a sign for each entry, average what agrees with it.

    Semantics: θ₀ + λ elect(d_1 … d_T), d_i as in `dare_linear`, the election as in `ties`.

    Args:
        name: the tensor's name; part of the masks' seed.
        base: θ₀, any shape.
        vectors: τ_i; iterated twice.
        weight: w_i.
        density: probability that an entry is kept, above 0, at most 1.
        rescale: divide by the density.
        normalize: average instead of sum.
        lambda_: λ.
        seed: of the masks; see `keep_mask`.
    """
    dropped = vectors.map(_dropper(name, density, rescale, seed, vectors.first_row))
    return elect(base, dropped, weight, normalize).mul_(lambda_).add_(base)


def keep_mask(shape: tuple[int, ...], density: float, seed: int, task: str, name: str, first_row: int = 0) -> Tensor:
    """Draw which entries of one tensor of one task are kept.

    The generator is seeded by a hash of (seed, task, tensor name) alone, and of the first row if that is not 0, so a
    mask does not depend on the order of the tasks, on what was drawn before it, on threads or on shards. At another
    density the same draw is cut elsewhere: what is kept at a low density is kept at every higher one.

    Returns:
        Of the given shape, bool.
    """
    return uniform(shape, seed, task, name, first_row) < density


def uniform(shape: tuple[int, ...], seed: int, task: str, name: str, first_row: int = 0) -> Tensor:
    """Numbers between 0 and 1 for the entries of one tensor of one task, float32, as `keep_mask` draws them."""
    place = f"{name}\0{first_row}" if first_row else name
    digest = hashlib.sha256(f"{seed}\0{task}\0{place}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    # Uniform numbers in place of torch.bernoulli, whose CPU draw is split over threads in some builds.
    return torch.rand(shape, generator=generator)


def _dropper(name: str, density: PerTask, rescale: bool, seed: int, first_row: int) -> Callable[[str, Tensor], Tensor]:
    def drop(task: str, vector: Tensor) -> Tensor:
        if density[task] == 1:
            return vector
        # Drawn by the processor's generator on every device: the masks are the same.
        kept = vector * keep_mask(tuple(vector.shape), density[task], seed, task, name, first_row).to(vector.device)
        return kept.div_(density[task]) if rescale else kept

    return drop
