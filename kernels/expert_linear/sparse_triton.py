"""The sparse residuals of a step on a GPU, in Triton."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu
from kernels.expert_linear.bank import ROW_BLOCK, ExpertBank
from kernels.expert_linear.onto import Onto, finish_row
from kernels.expert_linear.tiles import WORDS, Tiles, tile_programs


@dataclass(frozen=True)
class SparseConfig:
    """A launch of `sparse_kernel`: a program's rows, entries of a row in flight, and warps."""

    rows: int = 128
    unroll: int = 8
    warps: int = 4


SPARSE = SparseConfig()


@triton.jit  # type: ignore[untyped-decorator]
def _add_four(  # type: ignore[no-untyped-def]
    x, y, sums, bias, index, value, scale, token, gate, slot, place, count, row, rows, x_stride, entries,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, UNROLL: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """One expert's entries for two to four of its tokens and a tile of rows: each entry is loaded once for all of them.

    Four sums of one dimension, and not one of two, whose parts Triton would lay out otherwise than the entries: it
    would bring these from lane to lane through shared memory, with a barrier for each of them.
    """
    inside = row < rows
    blocks = tl.cdiv(rows, ROW_BLOCK)
    own_0 = tl.load(token + place).to(tl.int64)
    own_1 = tl.load(token + place + 1).to(tl.int64)
    own_2 = tl.load(token + place + tl.minimum(count - 1, 2)).to(tl.int64)
    own_3 = tl.load(token + place + tl.minimum(count - 1, 3)).to(tl.int64)
    x_0, x_1, x_2, x_3 = x + own_0 * x_stride, x + own_1 * x_stride, x + own_2 * x_stride, x + own_3 * x_stride
    sum_0 = tl.zeros(row.shape, tl.float32)
    sum_1, sum_2, sum_3 = sum_0, sum_0, sum_0
    if slot >= 0:
        at = (slot * blocks + row // ROW_BLOCK) * entries * ROW_BLOCK + row % ROW_BLOCK
        whole = entries // UNROLL * UNROLL
        for start in range(0, whole, UNROLL):
            for step in tl.static_range(UNROLL):
                column = tl.load(index + at + (start + step) * ROW_BLOCK, mask=inside, other=0).to(tl.int32)
                number = tl.load(value + at + (start + step) * ROW_BLOCK, mask=inside, other=0).to(tl.float32)
                sum_0 += number * tl.load(x_0 + column).to(tl.float32)
                sum_1 += number * tl.load(x_1 + column).to(tl.float32)
                sum_2 += number * tl.load(x_2 + column).to(tl.float32)
                sum_3 += number * tl.load(x_3 + column).to(tl.float32)
        for last in range(whole, entries):
            column = tl.load(index + at + last * ROW_BLOCK, mask=inside, other=0).to(tl.int32)
            number = tl.load(value + at + last * ROW_BLOCK, mask=inside, other=0).to(tl.float32)
            sum_0 += number * tl.load(x_0 + column).to(tl.float32)
            sum_1 += number * tl.load(x_1 + column).to(tl.float32)
            sum_2 += number * tl.load(x_2 + column).to(tl.float32)
            sum_3 += number * tl.load(x_3 + column).to(tl.float32)
        if HAS_SCALE:
            scales = tl.load(scale + slot * blocks * ROW_BLOCK + row, mask=inside, other=0.0)
            sum_0, sum_1, sum_2, sum_3 = sum_0 * scales, sum_1 * scales, sum_2 * scales, sum_3 * scales
        sum_0 *= tl.load(gate + place)
        sum_1 *= tl.load(gate + place + 1)
        sum_2 *= tl.load(gate + place + tl.minimum(count - 1, 2))
        sum_3 *= tl.load(gate + place + tl.minimum(count - 1, 3))
    finish_row(sum_0, y, sums, bias, own_0, row, rows, HAS_BIAS, FIRST, LAST)
    finish_row(sum_1, y, sums, bias, own_1, row, rows, HAS_BIAS, FIRST, LAST)
    if count > 2:
        finish_row(sum_2, y, sums, bias, own_2, row, rows, HAS_BIAS, FIRST, LAST)
    if count > 3:
        finish_row(sum_3, y, sums, bias, own_3, row, rows, HAS_BIAS, FIRST, LAST)


@triton.jit  # type: ignore[untyped-decorator]
def _add_one(  # type: ignore[no-untyped-def]
    x, y, sums, bias, index, value, scale, token, gate, slot, place, row, rows, x_stride, entries,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, UNROLL: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """One expert's entries for one token and a tile of rows, in the order of `_add_four`."""
    inside = row < rows
    blocks = tl.cdiv(rows, ROW_BLOCK)
    own = tl.load(token + place).to(tl.int64)
    x_row = x + own * x_stride
    total = tl.zeros(row.shape, tl.float32)
    if slot >= 0:
        at = (slot * blocks + row // ROW_BLOCK) * entries * ROW_BLOCK + row % ROW_BLOCK
        whole = entries // UNROLL * UNROLL
        for start in range(0, whole, UNROLL):
            for step in tl.static_range(UNROLL):
                column = tl.load(index + at + (start + step) * ROW_BLOCK, mask=inside, other=0).to(tl.int32)
                number = tl.load(value + at + (start + step) * ROW_BLOCK, mask=inside, other=0).to(tl.float32)
                total += number * tl.load(x_row + column).to(tl.float32)
        for last in range(whole, entries):
            column = tl.load(index + at + last * ROW_BLOCK, mask=inside, other=0).to(tl.int32)
            number = tl.load(value + at + last * ROW_BLOCK, mask=inside, other=0).to(tl.float32)
            total += number * tl.load(x_row + column).to(tl.float32)
        if HAS_SCALE:
            total *= tl.load(scale + slot * blocks * ROW_BLOCK + row, mask=inside, other=0.0)
        total *= tl.load(gate + place)
    finish_row(total, y, sums, bias, own, row, rows, HAS_BIAS, FIRST, LAST)


@triton.jit  # type: ignore[untyped-decorator]
def add_entries(  # type: ignore[no-untyped-def]
    x, y, sums, bias, index, value, scale, token, gate, slot, place, count, row, rows, x_stride, entries,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, UNROLL: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """One expert's entries for a tile of its tokens and a tile of rows."""
    while count > 1:
        _add_four(
            x, y, sums, bias, index, value, scale, token, gate, slot, place, count, row, rows, x_stride, entries,
            HAS_BIAS, HAS_SCALE, FIRST, LAST, UNROLL, ROW_BLOCK,
        )  # fmt: skip
        place += 4
        count -= 4
    if count == 1:
        _add_one(
            x, y, sums, bias, index, value, scale, token, gate, slot, place, row, rows, x_stride, entries,
            HAS_BIAS, HAS_SCALE, FIRST, LAST, UNROLL, ROW_BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["column", "tokens", "most", "entries"])  # type: ignore[untyped-decorator]
def sparse_kernel(  # type: ignore[no-untyped-def]
    x, y, sums, bias, index, value, scale, table, token, gate, column, tokens, most, rows, x_stride, entries,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr,
    UNROLL: tl.constexpr, ROW_BLOCK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """The sparse residuals of one column of slots, for a tile of rows and every n-th tile of tokens.

    A lane holds a row, and an entry of all rows is added to their sums at once: nothing is summed across lanes, so that
    the loop over the entries has neither a barrier nor a shuffle, and every sum has the order of the entries. How many
    tiles there are is read when the kernel runs, for a captured launch is replayed with those of other steps.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    table += column * most * WORDS
    token += column * tokens
    gate += column * tokens
    tile = tl.program_id(1)
    count = tl.load(table + tile * WORDS + 2)
    while count > 0:
        slot = tl.load(table + tile * WORDS).to(tl.int64)
        place = tl.load(table + tile * WORDS + 1)
        add_entries(
            x, y, sums, bias, index, value, scale, token, gate, slot, place, count, row, rows, x_stride, entries,
            HAS_BIAS, HAS_SCALE, FIRST, LAST, UNROLL, ROW_BLOCK,
        )  # fmt: skip
        tile += tl.num_programs(1)
        count = tl.load(table + tile * WORDS + 2, mask=tile < most, other=0)


def launch_sparse(x: Tensor, onto: Onto, bank: ExpertBank, tiles: Tiles, column: int) -> None:
    """`sparse_kernel` for one column of slots."""
    rows, row_tiles = onto.y.shape[1], triton.cdiv(onto.y.shape[1], SPARSE.rows)
    on_gpu.launch(
        sparse_kernel, (row_tiles, tile_programs(row_tiles, tiles.most)),
        # What a kernel is not to read is any tensor.
        x, *onto.tensors, bank.index, bank.value, bank.value if bank.scale is None else bank.scale,
        tiles.table, tiles.token, tiles.gate, column, tiles.token.shape[1], tiles.most, rows, x.stride(0), bank.entries,
        HAS_BIAS=onto.bias is not None, HAS_SCALE=bank.scale is not None, FIRST=onto.first, LAST=onto.last,
        ROWS=SPARSE.rows, UNROLL=SPARSE.unroll, ROW_BLOCK=ROW_BLOCK, WORDS=WORDS, num_warps=SPARSE.warps, num_stages=1,
    )  # fmt: skip
