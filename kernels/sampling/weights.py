"""Probabilities as integers."""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = 1 << 30
"""The weight of the highest logit. Tokens less than 2^-31 as likely as the most likely one have a weight of 0."""

_SHIFT = 12582912.0  # 1.5 * 2^23: adding it to a float32 rounds that to an integer
_POLYNOMIAL = (
    0.001326472731307149,
    0.009671512991189957,
    0.05550733581185341,
    0.24022242426872253,
    0.6931470036506653,
    1.0,
)


def weights(logits: Tensor, highest: Tensor, scale: Tensor) -> Tensor:
    """Integers proportional to the softmax of logits over a temperature.

    Semantics: `round(2^30 * 2^((logits - highest) * scale))`, the power of two to 2e-7 of itself.

    Integers add up to the same sum in any order, and each operation here is one rounding to float32 that any processor
    does alike. The compiled kernel (csrc/sampling.h) repeats them, so the weights are the same to the last bit.

    Args:
        logits: [R, vocab] float32.
        highest: [R] float32, each row's highest logit; finite.
        scale: [R] float32, log2(e) / temperature.

    Returns:
        [R, vocab] int32, from 0 to `UNIT`.
    """
    y = (logits - highest[:, None]).mul_(scale[:, None])
    y = torch.where(y > -40.0, y, -40.0)  # also what -inf * 0 gives: not a number
    nearest = y.add(_SHIFT).sub_(_SHIFT)
    fraction = y.sub_(nearest)
    power = torch.full_like(fraction, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        power.mul_(fraction).add_(coefficient)
    exponent = (nearest.to(torch.int32) + (127 + 30)) << 23
    return power.mul_(exponent.view(torch.float32)).add_(0.5).to(torch.int32)
