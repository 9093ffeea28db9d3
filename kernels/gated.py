"""The gated activation of an MLP."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from kernels import on_gpu
from kernels.compiled import TYPES, Arguments, elementwise

ARGUMENTS = Arguments(
    "gated",
    "type activation tokens size x x_stride out",
)
"""`GatedArguments` of csrc/kernels.h."""

Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1}
"""`Activation` of csrc/kernels.h."""


def gated(gate_up: Tensor, activation: Activation = "silu") -> Tensor:
    """The activation of one half times the other (SwiGLU and GEGLU, arXiv:2002.05202).

    Semantics: `y[t, i] = a(gate_up[t, i]) * gate_up[t, I + i]`; `a(g) = g / (1 + exp(-g))` for `silu` and
    `a(g) = g * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 * g^3))) / 2` (arXiv:1606.08415) for `gelu_tanh`. Compiled, and
    on a GPU, in fp32 and rounded once, in torch rounded after each of the two steps.

    Args:
        gate_up: `[T, 2 I]`.
        activation: a, of the first half.

    Returns:
        `[T, I]`, the dtype of `gate_up`.

    Raises:
        ValueError: not two dimensions, or an odd last one.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [T, 2 I], not {list(gate_up.shape)}")
    if on_gpu.runs_triton(gate_up):
        from kernels.gated_triton import gated_triton  # Triton is optional, and takes a second to import

        gate_up = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
        return gated_triton(gate_up, activation == "gelu_tanh")
    kernels = elementwise(gate_up)
    if kernels is None:
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")).mul_(up)
    gate_up = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, size)
    kernels.call(
        ARGUMENTS,
        type=TYPES[gate_up.dtype],
        activation=ACTIVATIONS[activation],
        tokens=tokens,
        size=size,
        x=gate_up.data_ptr(),
        x_stride=gate_up.stride(0),
        out=out.data_ptr(),
    )
    return out
