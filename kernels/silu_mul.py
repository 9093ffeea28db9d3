"""The gated activation of the Llama family's MLP."""

from __future__ import annotations

from struct import Struct

from torch import Tensor
from torch.nn import functional as F

from kernels.compiled import TYPES, elementwise

ARGUMENTS = Struct("8q")
"""`SiluArguments` of csrc/kernels.h."""


def silu_mul(gate_up: Tensor) -> Tensor:
    """SiLU of one half times the other (SwiGLU, arXiv:2002.05202).

    Semantics: `y[t, i] = g / (1 + exp(-g)) * gate_up[t, I + i]`, `g = gate_up[t, i]`; compiled in fp32 and rounded
    once, in torch rounded after each of the two steps.

    Args:
        gate_up: `[T, 2 I]`.

    Returns:
        `[T, I]`, the dtype of `gate_up`.

    Raises:
        ValueError: not two dimensions, or an odd last one.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [T, 2 I], not {list(gate_up.shape)}")
    kernels = elementwise(gate_up)
    if kernels is None:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
    gate_up = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, size)
    kernels.call(
        "silu", ARGUMENTS, TYPES[gate_up.dtype], tokens, size, gate_up.data_ptr(), gate_up.stride(0), out.data_ptr()
    )
    return out
