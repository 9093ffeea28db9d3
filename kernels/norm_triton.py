"""A sum of the residual stream and its norm on a GPU, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu
from kernels.expert_linear.batch import ExpertBatch


@triton.jit(do_not_specialize=["width", "x_stride", "head_stride", "made_stride"])  # type: ignore[untyped-decorator]
def add_norm_kernel(  # type: ignore[no-untyped-def]
    x, made, weight, delta, slots, gates, stream, y, width, x_stride, head_stride, made_stride, factor, eps, offset,
    SIZE: tl.constexpr, HEADS: tl.constexpr, HAS_MADE: tl.constexpr, HAS_DELTA: tl.constexpr,
    HAS_OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: `stream = x + factor * made`, then its norm with the weight that the token's experts shift."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    wide = tl.load(x + token * x_stride + head * head_stride + column, mask=inside, other=0.0)
    dtype = wide.dtype
    wide = wide.to(tl.float32)
    if HAS_MADE:
        added = tl.load(made + token * made_stride + column, mask=inside, other=0.0).to(tl.float32)
        wide = (wide + (added * factor).to(dtype).to(tl.float32)).to(dtype)
        tl.store(stream + token * SIZE + column, wide, mask=inside)
        wide = wide.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / SIZE + eps)
    own = tl.load(weight + column, mask=inside, other=0.0)
    if HAS_DELTA:
        shift = tl.zeros((BLOCK,), tl.float32)
        for place in range(width):
            slot = tl.load(slots + token * width + place)
            if slot >= 0:
                row = tl.load(delta + slot.to(tl.int64) * SIZE + column, mask=inside, other=0.0)
                shift += tl.load(gates + token * width + place) * row
        own = (own.to(tl.float32) + shift).to(own.dtype)
    # Where the norm has an offset everything but the weight is fp32; otherwise the normed row is rounded first.
    result = (
        (own.to(tl.float32) + offset) * normed if HAS_OFFSET else own.to(tl.float32) * normed.to(dtype).to(tl.float32)
    )
    tl.store(y + (token * HEADS + head) * SIZE + column, result.to(y.dtype.element_ty), mask=inside)


def norm_triton(
    x: Tensor,
    made: Tensor | None,
    factor: float,
    weight: Tensor,
    eps: float,
    shifts: tuple[Tensor, ExpertBatch] | None,
    offset: float,
) -> tuple[Tensor, Tensor]:
    """`x + factor * made` and its norm; x itself if there is nothing to add.

    Shapes and semantics are those of `added_rms_norm`. With `made`, x has two dimensions; without it may have three.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    if made is not None and made.stride(-1) != 1:
        made = made.contiguous()
    heads, head_stride = (1, 0) if x.dim() == 2 else (x.shape[1], x.stride(1))
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    stream = x if made is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    # What a kernel is not to read is any tensor.
    delta, slots, gates = (y, y, y) if shifts is None else (shifts[0], shifts[1].slots, shifts[1].gates)
    size = x.shape[-1]
    on_gpu.launch(
        add_norm_kernel, (x.shape[0], heads),
        x, x if made is None else made, weight, delta, slots, gates, stream, y,
        0 if shifts is None else slots.shape[1], x.stride(0), head_stride, 0 if made is None else made.stride(0),
        factor, eps, offset,
        SIZE=size, HEADS=heads, HAS_MADE=made is not None, HAS_DELTA=shifts is not None, HAS_OFFSET=bool(offset),
        BLOCK=triton.next_power_of_2(size), num_warps=min(16, max(1, triton.next_power_of_2(size) // 512)),
    )  # fmt: skip
    return stream, y
