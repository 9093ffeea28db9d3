"""Products with weights of 8 and 4 bits on a GPU, in Triton: the integers are widened in the tile that reads them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu
from kernels.expert_linear.bank import ROW_BLOCK, ExpertBank
from kernels.expert_linear.batch import ExpertBatch
from kernels.expert_linear.low_rank import LowRankBank
from kernels.expert_linear.low_rank_triton import INTERPRETED
from kernels.expert_linear.packed_weight import GROUP, PackedWeight
from kernels.expert_linear.tiles import TILE
from kernels.expert_linear.triton import write_residuals

ROWS = 32
COLUMNS = 128
"""Columns of a tile of 8-bit integers; a tile of 4-bit integers has those of a group."""


@triton.jit  # type: ignore[untyped-decorator]
def _integers_8(data, row, column, kept, padded, ROW_BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Integers [rows, columns] of a tile; 0 outside of it."""
    block = (row // ROW_BLOCK).to(tl.int64) * padded * ROW_BLOCK + row % ROW_BLOCK * 4
    at = block[:, None] + (column // 4 * 4 * ROW_BLOCK + column % 4)[None, :]
    return tl.load(data + at, mask=kept, other=128).to(tl.int32) - 128


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def packed_kernel_8(  # type: ignore[no-untyped-def]
    x, data, scale, bias, y, tokens, rows, columns, padded, x_stride,
    HAS_BIAS: tl.constexpr, HAS_ONTO: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr, ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of rows for TOKENS tokens over `PackedWeight` in 8 bits: the scale of a row follows the whole sum."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (column < columns)[None, :]
        inputs = tl.load(
            x + token[:, None].to(tl.int64) * x_stride + column[None, :],
            mask=(token[:, None] < tokens) & inside,
            other=0.0,
        )
        if WIDEN:
            inputs = inputs.to(tl.float32)
        integers = _integers_8(data, row, column, (row[:, None] < rows) & inside, padded, ROW_BLOCK)
        total = tl.dot(inputs, tl.trans(integers.to(inputs.dtype)), total, input_precision="ieee")
    total *= tl.load(scale + row, mask=row < rows, other=0.0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
    out = y + token[:, None].to(tl.int64) * rows + row[None, :]
    kept = (token[:, None] < tokens) & (row[None, :] < rows)
    if HAS_ONTO:
        total += tl.load(out, mask=kept, other=0.0).to(tl.float32)
    tl.store(out, total.to(y.dtype.element_ty), mask=kept)


@triton.jit  # type: ignore[untyped-decorator]
def _half(x, token, tokens, column, columns, x_stride, integers, WIDEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Products [tokens, rows] of half of a group's columns, summed in fp32."""
    kept = (token[:, None] < tokens) & (column[None, :] < columns)
    inputs = tl.load(x + token[:, None].to(tl.int64) * x_stride + column[None, :], mask=kept, other=0.0)
    if WIDEN:
        inputs = inputs.to(tl.float32)
    return tl.dot(inputs, tl.trans((integers - 8).to(inputs.dtype)), input_precision="ieee")


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def packed_kernel_4(  # type: ignore[no-untyped-def]
    x, data, scale, bias, y, tokens, rows, columns, groups, x_stride,
    HAS_BIAS: tl.constexpr, HAS_ONTO: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    ROW_BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A tile of rows for TOKENS tokens over `PackedWeight` in 4 bits: the scale of a group follows the group's sum.

    A byte holds integers of two columns, so half of a group's bytes are one load and two products. `scale` is `data`
    read as bf16.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    byte = tl.arange(0, GROUP // 2)
    lower = byte // 4 * 8 + byte % 4
    SIZE: tl.constexpr = ROW_BLOCK * (GROUP // 2 + 2)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for group in range(groups):
        base = ((row // ROW_BLOCK).to(tl.int64) * groups + group) * SIZE
        at = (base + row % ROW_BLOCK * 4)[:, None] + (byte // 4 * 4 * ROW_BLOCK + byte % 4)[None, :]
        both = tl.load(data + at, mask=row[:, None] < rows, other=136).to(tl.int32)
        column = group * GROUP + lower
        part = _half(x, token, tokens, column, columns, x_stride, both & 15, WIDEN)
        part += _half(x, token, tokens, column + 4, columns, x_stride, both >> 4, WIDEN)
        factor = tl.load(scale + (base + ROW_BLOCK * GROUP // 2) // 2 + row % ROW_BLOCK, mask=row < rows, other=0.0).to(
            tl.float32
        )
        total += part * factor[None, :]
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
    out = y + token[:, None].to(tl.int64) * rows + row[None, :]
    kept = (token[:, None] < tokens) & (row[None, :] < rows)
    if HAS_ONTO:
        total += tl.load(out, mask=kept, other=0.0).to(tl.float32)
    tl.store(out, total.to(y.dtype.element_ty), mask=kept)


def packed_linear_triton(x: Tensor, weight: PackedWeight, bias: Tensor | None, onto: Tensor | None = None) -> Tensor:
    """The product with a packed weight, alone or added to something.

    Semantics: `y[t, n] = onto[t, n] + sum_g scale[n, g] * (sum_{k in g} value[n, k] * x[t, k]) + bias[n]`, a whole row
    being the group in 8 bits; sums in fp32, in an order that does not depend on the other tokens, and rounded once.

    Args:
        x: `[T, K]` bf16, fp16 or fp32.
        weight: `[N, K]`, on the device of `x`.
        bias: `[N]` or None.
        onto: `[T, N]` contiguous, in the dtype of `x`, which becomes the result; or None.

    Returns:
        `[T, N]` in the dtype of `x`.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    (tokens, columns), rows = x.shape, weight.out_features
    y = x.new_empty(tokens, rows) if onto is None else onto
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(tokens, TILE))
    common = {
        "HAS_BIAS": bias is not None, "HAS_ONTO": onto is not None, "WIDEN": INTERPRETED, "ROWS": ROWS, "TOKENS": TILE,
        "ROW_BLOCK": ROW_BLOCK,
        "num_warps": 4, "num_stages": 3, "enable_fp_fusion": True,
    }  # fmt: skip
    # What a kernel is not to read is any tensor.
    added = y if bias is None else bias
    groups = triton.cdiv(columns, GROUP)
    if weight.scale is not None:
        sizes = (tokens, rows, columns, groups * GROUP, x.stride(0))
        on_gpu.launch(packed_kernel_8, grid, x, weight.data, weight.scale, added, y, *sizes, COLUMNS=COLUMNS, **common)
        return y
    sizes = (tokens, rows, columns, groups, x.stride(0))
    scale = weight.data.view(torch.bfloat16)
    on_gpu.launch(packed_kernel_4, grid, x, weight.data, scale, added, y, *sizes, GROUP=GROUP, **common)
    return y


def expert_linear_packed_triton(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    bank: ExpertBank | None,
    batch: ExpertBatch | None,
    low_rank: LowRankBank | None = None,
) -> Tensor:
    """A decode step over a packed weight: what the experts add, and the product onto it.

    Shapes and semantics are those of `expert_linear`.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    if batch is None or (bank is None and low_rank is None):
        return packed_linear_triton(x, weight, bias)
    y = x.new_empty(x.shape[0], weight.out_features)
    write_residuals(x, y, None, bank, batch, low_rank)
    return packed_linear_triton(x, weight, bias, onto=y)
