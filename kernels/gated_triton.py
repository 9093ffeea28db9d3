"""The gated activation on a GPU, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def gated_kernel(  # type: ignore[no-untyped-def]
    gate_up, out, size, stride, GELU: tl.constexpr, BLOCK: tl.constexpr
):
    """A block of one token's row."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(gate_up + token * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * stride + size + column, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        # (1 + tanh(z)) / 2 is sigmoid(2 z), and in fp32 neither changes beyond 20.
        active = gate * tl.sigmoid(2 * tl.minimum(tl.maximum(inner, -20.0), 20.0))
    else:
        active = gate * tl.sigmoid(gate)
    tl.store(out + token * size + column, (active * up).to(out.dtype.element_ty), mask=inside)


def gated_triton(gate_up: Tensor, gelu: bool) -> Tensor:
    """`gated`, rounded once; `gate_up` `[T, 2 I]` of unit stride along its rows."""
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, size, dtype=gate_up.dtype, device=gate_up.device)
    on_gpu.launch(
        gated_kernel, (tokens, triton.cdiv(size, _BLOCK)),
        gate_up, out, size, gate_up.stride(0), GELU=gelu, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return out
