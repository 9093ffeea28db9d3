"""TIES-Merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708)."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
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
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Trim each task vector to its largest entries, elect a sign for each entry, average what agrees with it.

    Semantics: s = sign(Σ_i w_i t_i), + for 0; θ₀ + λ Σ_{i: sign t_i = s} w_i t_i / Σ_{i: sign t_i = s} w_i, where t_i
    is τ_i with all but the `density` largest |entries| of this tensor zeroed. Without `normalize` the division is left
    out. With `rescale` t_i is multiplied by Σ|τ_i| / Σ|t_i|. Trimming is per tensor (the paper trims a whole model at
    once).

    Args:
        _name: the tensor's name; all tensors are treated alike.
        base: θ₀, any shape.
        vectors: τ_i; iterated twice.
        weight: w_i.
        density: fraction of entries kept, above 0, at most 1.
        normalize: average instead of sum.
        rescale: give the trimmed vector the sum of sizes that it had.
        lambda_: λ.
    """
    cuts: dict[str, Cut] = {}
    scales: dict[str, float] = {}

    def trimmed(task: str, flat: Tensor, at: slice) -> Tensor:
        if task not in cuts:
            cuts[task] = find_cut(flat, density[task])
            left = cuts[task].trim(flat, slice(0, len(flat))).abs().sum() if rescale else flat.new_ones(())
            scales[task] = float(flat.abs().sum() / left) if rescale and left else 1.0
        found = cuts[task].trim(flat, at)
        return found.mul_(scales[task]) if rescale else found

    return elect(base, vectors, weight, normalize, trimmed).mul_(lambda_).add_(base)


@dataclass(frozen=True)
class Cut:
    """Which entries of a vector are its largest: all above a size, and of those of exactly that size the first.

    Attributes:
        size: the smallest |entry| kept.
        last: position after the last entry of exactly that size that is kept.
    """

    size: float
    last: int

    def trim(self, flat: Tensor, at: slice) -> Tensor:
        """A piece of the vector, zeros in place of what is cut."""
        part = flat[at]
        size = part.abs()
        keep = size > self.size
        if at.start < self.last:
            keep[: self.last - at.start] |= size[: self.last - at.start] == self.size
        return part * keep


def find_cut(flat: Tensor, density: float) -> Cut:
    """Find the ⌊density·n⌋ (at least 1) entries of largest magnitude of [n] entries."""
    count = flat.numel()
    if density == 1 or count == 0:
        return Cut(-1.0, 0)
    return cut_to(flat, max(1, int(density * count)))


def cut_to(flat: Tensor, kept: int) -> Cut:
    """Find the `kept` entries, at least 1, of largest magnitude of [n] entries."""
    count = flat.numel()
    sizes = flat.abs()
    threshold = _from_the_top(sizes, kept)
    equal = kept - int((sizes > threshold).sum())
    level = (sizes == threshold).nonzero().squeeze(1)
    if equal == len(level):
        return Cut(threshold, count)
    return Cut(threshold, int(level[equal - 1]) + 1)


def _from_the_top(sizes: Tensor, place: int) -> float:
    """The number at a place of the descending order of [n] numbers, from 1."""
    at = len(sizes) - place
    if sizes.device.type != "cpu":
        return float(sizes.kthvalue(at + 1).values)
    # A partial sort: six times faster than sorting the 8 M entries of a matrix.
    return float(np.partition(sizes.numpy(), at)[at])
