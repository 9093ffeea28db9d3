"""The two halves of a low-rank residual on a GPU, in Triton, grouped by expert as Punica's SGMV (arXiv 2310.18547)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu
from kernels.expert_linear.bank import ROW_BLOCK
from kernels.expert_linear.low_rank import LowRankBank
from kernels.expert_linear.onto import Onto, finish
from kernels.expert_linear.tiles import TILE, WORDS, Tiles, tile_programs

INTERPRETED = triton.knobs.runtime.interpret
"""Triton's interpreter multiplies the bits of bf16 numbers as integers: there they are widened first, which changes no
product and no sum."""

RANKS = 16
"""Directions that are summed at once."""
_COLUMNS = 128
_ROWS = 64
_WARPS = 4
_SPLIT = 1024
"""Columns of x that one program sums, where a layer has more: few tokens have too few directions to fill a GPU."""
_MOST_SPLITS = 8


def splits(columns: int) -> int:
    """Parts of a sum over so many columns: they follow the layer alone, so that no result follows its company."""
    return max(1, min(_MOST_SPLITS, columns // _SPLIT))


@triton.jit(do_not_specialize=["tokens", "most", "columns_each", "segments"])  # type: ignore[untyped-decorator]
def shrink_kernel(  # type: ignore[no-untyped-def]
    x, u, a, scale, ranks, table, tiles, token, tokens, most, columns, columns_each, x_stride, directions, segments,
    WIDEN: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    """RANKS directions of one part of `u = scale * A x`, for every n-th tile of tokens of a column of slots.

    Directions beyond the ranks of a tile's slot are neither read nor of use to those who read `u`.
    """
    split = tl.program_id(0) % SPLITS
    direction = tl.program_id(0) // SPLITS * RANKS + tl.arange(0, RANKS)
    tiles += tl.program_id(2) * most * WORDS
    token += tl.program_id(2) * tokens
    u += (split * tl.num_programs(2) + tl.program_id(2)).to(tl.int64) * tokens * directions
    column = tl.arange(0, COLUMNS)
    tile = tl.program_id(1)
    count = tl.load(tiles + tile * WORDS + 2)
    while count > 0:
        slot = tl.load(tiles + tile * WORDS).to(tl.int64)
        begin = tl.load(tiles + tile * WORDS + 1)
        kept = direction < 0
        if slot >= 0:
            for segment in range(segments):
                first = tl.load(table + segment * 4 + 2)
                kept |= (direction >= first) & (direction < first + tl.load(ranks + slot * segments + segment))
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            member = tl.arange(0, TOKENS)
            own = tl.load(token + begin + member, mask=member < count, other=0).to(tl.int64)
            x_tile = x + own[:, None] * x_stride + column[None, :]
            a_tile = a + (slot * directions + direction[:, None]) * columns + column[None, :]
            total = tl.zeros((TOKENS, RANKS), tl.float32)
            for start in range(split * columns_each, min((split + 1) * columns_each, columns), COLUMNS):
                inside = column[None, :] < columns - start
                inputs = tl.load(x_tile + start, mask=(member[:, None] < count) & inside, other=0.0)
                factors = tl.load(a_tile + start, mask=kept[:, None] & inside, other=0)
                if WIDEN:
                    inputs, factors = inputs.to(tl.float32), factors.to(tl.float32)
                total = tl.dot(inputs, tl.trans(factors.to(inputs.dtype)), total, input_precision="ieee")
            total *= tl.load(scale + slot * directions + direction, mask=kept, other=0.0)[None, :]
            out = u + (begin + member[:, None]).to(tl.int64) * directions + direction[None, :]
            tl.store(out, total, mask=(member[:, None] < count) & kept[None, :])
        tile += tl.num_programs(1)
        count = tl.load(tiles + tile * WORDS + 2, mask=tile < most, other=0)


@triton.jit(do_not_specialize=["column", "columns", "tokens", "most", "segments"])  # type: ignore[untyped-decorator]
def expand_kernel(  # type: ignore[no-untyped-def]
    u, y, sums, bias, b, ranks, table, tiles, token, gate, column, columns, tokens, most, rows, directions, elements,
    segments,
    HAS_BIAS: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr,
    TOKENS: tl.constexpr, SPLITS: tl.constexpr, ROW_BLOCK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """`gate * B u` for a tile of rows and every n-th tile of tokens of a column of slots."""
    first_tile_row = tl.program_id(0) * ROWS
    row = first_tile_row + tl.arange(0, ROWS)
    tiles += column * most * WORDS
    token += column * tokens
    gate += column * tokens
    part = columns.to(tl.int64) * tokens * directions
    u += column.to(tl.int64) * tokens * directions
    member = tl.arange(0, TOKENS)
    direction = tl.arange(0, RANKS)
    tile = tl.program_id(1)
    count = tl.load(tiles + tile * WORDS + 2)
    while count > 0:
        slot = tl.load(tiles + tile * WORDS).to(tl.int64)
        begin = tl.load(tiles + tile * WORDS + 1)
        total = tl.zeros((TOKENS, ROWS), tl.float32)
        if slot >= 0:
            for segment in range(segments):
                first_row, last_row = tl.load(table + segment * 4), tl.load(table + segment * 4 + 1)
                if (first_row < first_tile_row + ROWS) & (last_row > first_tile_row):
                    rank = tl.load(ranks + slot * segments + segment)
                    first, origin = tl.load(table + segment * 4 + 2), tl.load(table + segment * 4 + 3)
                    block = row // ROW_BLOCK - first_row // ROW_BLOCK
                    own_rows = (row >= first_row) & (row < last_row)
                    b_row = b + slot * elements + origin + block * rank * ROW_BLOCK + row % ROW_BLOCK
                    for start in range(0, rank, RANKS):
                        inside = start + direction < rank
                        at = b_row[:, None] + (start + direction)[None, :] * ROW_BLOCK
                        factors = tl.load(at, mask=own_rows[:, None] & inside[None, :], other=0).to(tl.float32)
                        along = u + (begin + member[:, None]).to(tl.int64) * directions
                        along += first + start + direction[None, :]
                        known = (member[:, None] < count) & inside[None, :]
                        inputs = tl.load(along, mask=known, other=0.0)
                        for split in tl.static_range(1, SPLITS):
                            inputs += tl.load(along + split * part, mask=known, other=0.0)
                        total = tl.dot(inputs, tl.trans(factors), total, input_precision="ieee")
            total *= tl.load(gate + begin + member, mask=member < count, other=0.0)[:, None]
        own = tl.load(token + begin + member, mask=member < count, other=0).to(tl.int64)
        finish(total, y, sums, bias, own, member < count, row, rows, HAS_BIAS, FIRST, LAST)
        tile += tl.num_programs(1)
        count = tl.load(tiles + tile * WORDS + 2, mask=tile < most, other=0)


def shrink_low_rank(x: Tensor, bank: LowRankBank, tiles: Tiles) -> Tensor:
    """`scale * A x` of every pair of a token and its expert, in `splits(K)` parts.

    Semantics: `sum_s u[s, column, place] = scale[slot] * (A[slot] @ x[token])`, in fp32. Nothing is written beyond a
    slot's ranks.

    Args:
        x: `[T, K]`, of unit stride along K.
        bank: the layer's low-rank residuals.
        tiles: those of the T tokens.

    Returns:
        `[splits(K), m, T, R]` fp32, places as in `tiles.token`.
    """
    directions, columns, parts = bank.a.shape[1], x.shape[1], splits(x.shape[1])
    width, tokens = tiles.token.shape
    u = x.new_empty(parts, width, tokens, directions, dtype=torch.float32)
    programs = triton.cdiv(directions, RANKS) * parts
    same = bank.a.dtype in {x.dtype, torch.int8}
    on_gpu.launch(
        shrink_kernel, (programs, tile_programs(programs, tiles.most), width),
        x, u, bank.a, bank.scale, bank.ranks, bank.table, tiles.table, tiles.token, tokens, tiles.most,
        columns, triton.cdiv(triton.cdiv(columns, parts), _COLUMNS) * _COLUMNS, x.stride(0), directions,
        len(bank.segments),
        WIDEN=INTERPRETED or not same, COLUMNS=_COLUMNS, RANKS=RANKS, TOKENS=TILE, SPLITS=parts, WORDS=WORDS,
        num_warps=_WARPS,
    )  # fmt: skip
    return u


def expand_low_rank(u: Tensor, onto: Onto, bank: LowRankBank, tiles: Tiles, column: int) -> None:
    """The low-rank residuals of one column of slots.

    Semantics: `gate * (B[slot] @ u[pair])`, added as `onto` says.

    Args:
        u: of `shrink_low_rank`.
        onto: what is written.
        bank: the layer's low-rank residuals.
        tiles: those of the T tokens.
        column: which column.
    """
    rows = triton.cdiv(onto.y.shape[1], _ROWS)
    on_gpu.launch(
        expand_kernel, (rows, tile_programs(rows, tiles.most)),
        u, *onto.tensors, bank.b, bank.ranks, bank.table, tiles.table, tiles.token, tiles.gate,
        column, *tiles.token.shape, tiles.most, onto.y.shape[1], bank.a.shape[1], bank.b.shape[1], len(bank.segments),
        HAS_BIAS=onto.bias is not None, FIRST=onto.first, LAST=onto.last, ROWS=_ROWS, RANKS=RANKS, TOKENS=TILE,
        SPLITS=u.shape[0], ROW_BLOCK=ROW_BLOCK, WORDS=WORDS, num_warps=_WARPS,
    )  # fmt: skip
