"""Multiplying weights of 8 and 4 bits out on a GPU, in Triton, for products of many tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu
from kernels.expert_linear.bank import ROW_BLOCK

if TYPE_CHECKING:
    from kernels.expert_linear.packed_weight import PackedWeight

ROWS = 32
COLUMNS = 128
GROUP = 32


@triton.jit  # type: ignore[untyped-decorator]
def unpack_kernel_8(  # type: ignore[no-untyped-def]
    data, scale, out, rows, columns, padded, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of `PackedWeight` in 8 bits: each integer times the scale of its row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    kept = (row < rows)[:, None] & (column < columns)[None, :]
    block = (row // ROW_BLOCK).to(tl.int64) * padded * ROW_BLOCK + row % ROW_BLOCK * 4
    at = block[:, None] + (column // 4 * 4 * ROW_BLOCK + column % 4)[None, :]
    integers = tl.load(data + at, mask=kept, other=128).to(tl.int32) - 128
    factor = tl.load(scale + row, mask=row < rows, other=0.0)
    product = integers.to(tl.float32) * factor[:, None]
    tl.store(out + row[:, None].to(tl.int64) * columns + column[None, :], product.to(out.dtype.element_ty), mask=kept)


@triton.jit  # type: ignore[untyped-decorator]
def unpack_kernel_4(  # type: ignore[no-untyped-def]
    data, scale, out, rows, columns, groups, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """A tile of `PackedWeight` in 4 bits: each integer times the scale of its group. `scale` is `data` read as bf16."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    kept = (row < rows)[:, None] & (column < columns)[None, :]
    SIZE: tl.constexpr = ROW_BLOCK * (GROUP // 2 + 2)
    base = ((row // ROW_BLOCK).to(tl.int64) * groups * SIZE)[:, None] + (column // GROUP * SIZE)[None, :]
    # Of eight columns the first four are the lower halves of four bytes a row, the others the upper ones.
    inside = column % GROUP
    byte = inside // 8 * 4 * ROW_BLOCK + inside % 4
    both = tl.load(data + base + (row % ROW_BLOCK * 4)[:, None] + byte[None, :], mask=kept, other=136).to(tl.int32)
    integers = (both >> (inside % 8 // 4 * 4)[None, :] & 15) - 8
    factor = tl.load(scale + (base + ROW_BLOCK * GROUP // 2) // 2 + (row % ROW_BLOCK)[:, None], mask=kept, other=0.0)
    product = integers.to(tl.float32) * factor.to(tl.float32)
    tl.store(out + row[:, None].to(tl.int64) * columns + column[None, :], product.to(out.dtype.element_ty), mask=kept)


def unpacked_triton(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The whole weight, `[N, K]`: products in fp32, rounded once.

    Args:
        weight: on a GPU.
        dtype: bf16, fp16 or fp32.
    """
    rows, columns = weight.shape
    out = weight.data.new_empty(rows, columns, dtype=dtype)
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))
    groups = triton.cdiv(columns, GROUP)
    common = {"ROWS": ROWS, "COLUMNS": COLUMNS, "ROW_BLOCK": ROW_BLOCK, "num_warps": 4}
    if weight.scale is not None:
        operands = (weight.data, weight.scale, out, rows, columns, groups * GROUP)
        on_gpu.launch(unpack_kernel_8, grid, *operands, **common)
        return out
    operands = (weight.data, weight.data.view(torch.bfloat16), out, rows, columns, groups)
    on_gpu.launch(unpack_kernel_4, grid, *operands, GROUP=GROUP, **common)
    return out
