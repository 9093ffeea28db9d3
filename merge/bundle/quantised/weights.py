"""Rounding a weight to few bits, and multiplying it out."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from merge.bundle.quantised.scheme import Scheme

PIECE = 1 << 20
"""Elements that are rounded at a time, so that what is computed on the way stays in the cache."""

CLIPPED = (1.0, 0.97, 0.94, 0.9, 0.86, 0.82, 0.78, 0.73, 0.68)
"""Candidates of a scale, as parts of the one that reaches the largest value: smaller ones clip it and round the others
more finely. Fewer bits gain more by it."""


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

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight, [N, K]: products in float32, rounded once to `dtype`."""
        wide, group = self.value.to(torch.float32), self.scheme.group
        scale = self.scale.to(torch.float32)
        if group is not None:
            scale = scale.repeat_interleave(group, 1)[:, : wide.shape[1]]
        return wide.mul_(scale).to(dtype)


def quantise(weight: Tensor, scheme: Scheme) -> QuantisedWeight:
    """Round a weight, with the scales of the least squared error among some candidates.

    Semantics: per row or group v, s = bfloat16(c · max|v| / (2^(bits-1) − 1)) with the c of `CLIPPED` that gives the
    least Σ (v − s q)², q = round(v / s) within the scheme's range

    Scales have 16 bits, which costs nothing: the integers are rounded against them.

    Args:
        weight: [N, K] floating, finite.
        scheme: bits and group.
    """
    rows, columns = weight.shape
    group = scheme.group or columns
    value = torch.empty(rows, columns, dtype=torch.int8)
    scale = torch.empty(rows, scheme.scales(columns), dtype=torch.bfloat16)
    step = max(1, PIECE // columns)
    for first in range(0, rows, step):
        piece = weight[first : first + step].to(torch.float32)
        padded = F.pad(piece, (0, -columns % group)).view(len(piece), -1, group)
        integers, factors = _least_error(padded, scheme)
        value[first : first + step] = integers.flatten(1)[:, :columns]
        scale[first : first + step] = factors
    return QuantisedWeight(value, scale, scheme)


def _least_error(v: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Integers [..., group] int8 and scales [...] bfloat16 of groups v [..., group] float32."""
    tiny = torch.finfo(torch.bfloat16).tiny
    reach = v.abs().amax(-1, keepdim=True) / scheme.highest
    best = torch.zeros_like(v, dtype=torch.int8)
    chosen = torch.full_like(reach, tiny, dtype=torch.bfloat16)
    least = torch.full_like(reach, torch.inf)
    for part in CLIPPED:
        scale = (reach * part).to(torch.bfloat16).clamp_min(tiny)
        wide = scale.to(torch.float32)
        integers = (v / wide).round_().clamp_(scheme.lowest, scheme.highest)
        error = torch.sub(v, integers * wide).square_().sum(-1, keepdim=True)
        better = error < least
        best = torch.where(better, integers.to(torch.int8), best)
        chosen = torch.where(better, scale, chosen)
        least = torch.minimum(error, least)
    return best, chosen.squeeze(-1)
