"""8-bit values: a row of integers and one scale."""

import torch
from torch import Tensor

LARGEST = 127


def quantise_rows(value: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows to 8 bits.

    Semantics: s_n = bfloat16(max_j |v_nj| / 127),   q_nj = round(v_nj / s_n) within ±127

    A scale of 16 bits costs no accuracy, since the integers are rounded against it. Rounding what this gave gives
    the same again.

    Args:
        value: v, [N, k] float32, finite.

    Returns:
        q [N, k] int8 and s [N] bfloat16, positive.
    """
    scale = (value.abs().amax(1) / LARGEST).to(torch.bfloat16).clamp_min(torch.finfo(torch.bfloat16).tiny)
    steps = (value / scale.to(torch.float32)[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return steps.to(torch.int8), scale


def dequantise_rows(value: Tensor, scale: Tensor) -> Tensor:
    """Semantics: s_n q_nj, exact in float32; [N, k] float32."""
    return value.to(torch.float32) * scale.to(torch.float32)[:, None]
