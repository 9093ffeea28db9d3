"""The shifts that experts make to a bias, on a GPU, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu
from kernels.expert_linear.batch import ExpertBatch

_BLOCK = 1024


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def bias_kernel(y, delta, slots, gates, out, width, size, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block of one token's row."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    shift = tl.zeros((BLOCK,), tl.float32)
    for place in range(width):
        slot = tl.load(slots + token * width + place)
        if slot >= 0:
            row = tl.load(delta + slot.to(tl.int64) * size + column, mask=inside, other=0.0)
            shift += tl.load(gates + token * width + place) * row
    total = tl.load(y + token * stride + column, mask=inside, other=0.0).to(tl.float32) + shift
    tl.store(out + token * size + column, total.to(out.dtype.element_ty), mask=inside)


def bias_triton(y: Tensor, delta: Tensor, batch: ExpertBatch) -> Tensor:
    """`expert_bias` of `y` `[T, N]`, of unit stride along its rows."""
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    on_gpu.launch(
        bias_kernel, (y.shape[0], triton.cdiv(y.shape[1], _BLOCK)),
        y, delta, batch.slots, batch.gates, out, batch.slots.shape[1], y.shape[1], y.stride(0), BLOCK=_BLOCK,
        num_warps=4,
    )  # fmt: skip
    return out
