"""Rounding a weight to few bits, and multiplying it out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from merge.bundle.quantised.scheme import INT8, Scheme

PIECE = 1 << 20
"""Elements that are rounded at a time, so that the intermediate results stay in the cache."""

CLIPPED = (1.0, 0.97, 0.94, 0.9, 0.86, 0.82, 0.78, 0.73, 0.68)
"""Candidates of a scale, as parts of the one that reaches the largest value: smaller ones clip it and round the others
more finely. Fewer bits gain more by it."""

TINY = torch.finfo(torch.bfloat16).tiny
"""The smallest scale, that of a row of zeros."""


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight in few bits.

    Semantics: W[n, k] = scale[n, k // group] * value[n, k]

    Attributes:
        value: [N, K] int8, within the range of `scheme`.
        scale: [N, groups] floating, finite and positive.
        scheme: bits and group.
    """

    value: Tensor
    scale: Tensor
    scheme: Scheme

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return self.value.shape[0], self.value.shape[1]

    def rows(self, rows: slice) -> "QuantisedWeight":
        """Some rows of the weight."""
        return QuantisedWeight(self.value[rows], self.scale[rows], self.scheme)

    def cpu(self) -> "QuantisedWeight":
        """The same weight in the processor's memory."""
        return QuantisedWeight(self.value.cpu(), self.scale.cpu(), self.scheme)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight, [N, K]: products in float32, rounded once to `dtype`."""
        wide, group = self.value.to(torch.float32), self.scheme.group
        scale = self.scale.to(torch.float32)
        if group is not None:
            scale = scale.repeat_interleave(group, 1)[:, : wide.shape[1]]
        return wide.mul_(scale).to(dtype)


Rounds = Callable[[Tensor, Tensor, Scheme], tuple[Tensor, Tensor]]
"""(v [..., K] float32, scales [..., C] bfloat16, scheme) to integers [..., K] int8 and the chosen scales [...]"""


def quantise(weight: Tensor, scheme: Scheme, rounds: Rounds | None = None) -> QuantisedWeight:
    """Round a weight, with the scales of the least squared error among some candidates.

    Semantics: per row or group v, s = bfloat16(c · max|v| / (2^(bits-1) − 1)) with the c of `CLIPPED` that gives the
    least Σ (v − s q)², q = round(v / s) within the scheme's range

    Scales have 16 bits, which costs nothing: the integers are rounded against them.

    Args:
        weight: [N, K] floating, finite.
        scheme: bits and group.
        rounds: what computes as `least_error` does; None: that.
    """
    return _rounded(weight, scheme, lambda v: _clipped(v, scheme), rounds)


def scaled(groups: Tensor, scheme: Scheme) -> Tensor:
    """The scales that `quantise` gives groups of columns.

    Args:
        groups: [N, group] float32.
        scheme: bits and group.

    Returns:
        [N] bfloat16.
    """
    return least_error(groups, _clipped(groups, scheme), scheme)[1]


def recovered(weight: Tensor, rounds: Rounds | None = None) -> QuantisedWeight:
    """Find the integers and scales of a weight that had 8 bits, was multiplied out and was rounded to bfloat16.

    Semantics: per row v, the s among the neighbours in bfloat16 of max(v) / 127, −min(v) / 127 and −min(v) / 128 that
    gives the least Σ (v − s q)², q = round(v / s): the largest integer of a row that `quantise` made is one of these

    Args:
        weight: [N, K] floating, finite.
        rounds: as for `quantise`.
    """
    return _rounded(weight, INT8, _neighbours, rounds)


def _rounded(
    weight: Tensor, scheme: Scheme, scales: Callable[[Tensor], Tensor], rounds: Rounds | None
) -> QuantisedWeight:
    rows, columns = weight.shape
    group = scheme.group or columns
    value = torch.empty(rows, columns, dtype=torch.int8)
    scale = torch.empty(rows, scheme.scales(columns), dtype=torch.bfloat16)
    step = max(1, PIECE // columns)
    for first in range(0, rows, step):
        piece = weight[first : first + step].to(torch.float32)
        padded = F.pad(piece, (0, -columns % group)).view(len(piece), -1, group)
        integers, factors = (rounds or least_error)(padded, scales(padded), scheme)
        value[first : first + step] = integers.flatten(1)[:, :columns]
        scale[first : first + step] = factors
    return QuantisedWeight(value, scale, scheme)


def _clipped(v: Tensor, scheme: Scheme) -> Tensor:
    reach = v.abs().amax(-1, keepdim=True) / scheme.highest
    return torch.cat([(reach * part).to(torch.bfloat16) for part in CLIPPED], -1).clamp_min(TINY)


def _neighbours(v: Tensor) -> Tensor:
    highest, lowest = v.amax(-1, keepdim=True), v.amin(-1, keepdim=True)
    found = []
    for reach in (highest / INT8.highest, lowest / -INT8.highest, lowest / INT8.lowest):
        nearest = reach.clamp_min(0).to(torch.bfloat16)
        found += [(nearest.view(torch.int16) + step).clamp_min(0).view(torch.bfloat16) for step in (0, -1, 1)]
    return torch.cat(found, -1).clamp_min(TINY)


def least_error(v: Tensor, scales: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Round groups, each with the first of those of its scales that have the least squared error.

    Semantics: q = round(v / s) within the scheme's range, with the s that gives the least Σ (v − s q)²

    Args:
        v: [..., K] float32.
        scales: candidates, [..., C] bfloat16, positive.
        scheme: the range.

    Returns:
        q [..., K] int8 and s [...] bfloat16.
    """
    best = torch.zeros_like(v, dtype=torch.int8)
    chosen = v.new_full((*v.shape[:-1], 1), TINY, dtype=torch.bfloat16)
    least = v.new_full(chosen.shape, torch.inf)
    for candidate in range(scales.shape[-1]):
        scale = scales[..., candidate : candidate + 1]
        wide = scale.to(torch.float32)
        integers = (v / wide).round_().clamp_(scheme.lowest, scheme.highest)
        error = torch.sub(v, integers * wide).square_().sum(-1, keepdim=True)
        better = error < least
        best = torch.where(better, integers.to(torch.int8), best)
        chosen = torch.where(better, scale, chosen)
        least = torch.minimum(error, least)
    return best, chosen.squeeze(-1)
