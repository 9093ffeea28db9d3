"""The two halves of a low-rank residual on a GPU, in Triton, grouped by expert as Punica's SGMV (arXiv 2310.18547)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu
from kernels.expert_linear.low_rank import LowRankBank
from kernels.expert_linear.tiles import TILE, WORDS, Tiles, tile_programs

INTERPRETED = triton.knobs.runtime.interpret
"""Triton's interpreter multiplies the bits of bf16 numbers as integers: there they are widened first, which changes no
product and no sum."""

RANKS = 16
"""Directions that are summed at once."""
COLUMNS = 128
"""Columns of x that are multiplied at once."""
STAGES = 4
"""Blocks of columns of which three are on their way while one is multiplied."""
_WARPS = 4
_SPLIT = 1024
"""Columns of x that one program sums if a layer has more: few tokens have too few directions to fill a GPU."""
_MOST_SPLITS = 8


def splits(columns: int) -> int:
    """Parts of a sum over the columns. They depend on the layer alone, so that results do not depend on the batch."""
    return max(1, min(_MOST_SPLITS, columns // _SPLIT))


def blocks_each(columns: int) -> int:
    """Blocks of COLUMNS columns in each of those parts but the last, which may have fewer."""
    return -(-columns // (splits(columns) * COLUMNS))


def widens(x: Tensor, bank: LowRankBank) -> bool:
    """Whether x and the factors are widened to fp32 before they are multiplied."""
    return INTERPRETED or bank.a.dtype not in {x.dtype, torch.int8}


@triton.jit  # type: ignore[untyped-decorator]
def shrink_part(  # type: ignore[no-untyped-def]
    x, a, own, count, slot, direction, kept, split, each, columns, x_stride, directions,
    WIDEN: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The kept directions of one part of `A x`, for a tile of one expert's tokens: [TOKENS, RANKS].

    Each number is the sum of its products in the order of the columns, independent of other directions and tokens.
    """
    member, column = tl.arange(0, TOKENS), tl.arange(0, COLUMNS)
    x_tile = x + own[:, None] * x_stride + column[None, :]
    a_tile = a + (slot * directions + direction[:, None]) * columns + column[None, :]
    total = tl.zeros((TOKENS, RANKS), tl.float32)
    # Counted in blocks: that columns begin at multiples of 16 bytes must be seen for them to be loaded 16 at a time.
    for block in range(split * each, min((split + 1) * each, tl.cdiv(columns, COLUMNS))):
        first = block * COLUMNS
        inside = column[None, :] < columns - first
        inputs = tl.load(x_tile + first, mask=(member[:, None] < count) & inside, other=0.0)
        factors = tl.load(a_tile + first, mask=kept[:, None] & inside, other=0)
        if WIDEN:
            inputs, factors = inputs.to(tl.float32), factors.to(tl.float32)
        total = tl.dot(inputs, tl.trans(factors.to(inputs.dtype)), total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["tokens", "most", "each", "segments"])  # type: ignore[untyped-decorator]
def shrink_kernel(  # type: ignore[no-untyped-def]
    x, u, a, ranks, table, tiles, token, tokens, most, columns, each, x_stride, directions, segments,
    WIDEN: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    """RANKS directions of one part of `u = A x`, for every n-th tile of tokens of a column of slots.

    Directions beyond the ranks of a tile's slot are neither read nor of use to those who read `u`.
    """
    split = tl.program_id(0) % SPLITS
    direction = tl.program_id(0) // SPLITS * RANKS + tl.arange(0, RANKS)
    tiles += tl.program_id(2) * most * WORDS
    token += tl.program_id(2) * tokens
    u += (split * tl.num_programs(2) + tl.program_id(2)).to(tl.int64) * tokens * directions
    member = tl.arange(0, TOKENS)
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
            own = tl.load(token + begin + member, mask=member < count, other=0).to(tl.int64)
            total = shrink_part(
                x, a, own, count, slot, direction, kept, split, each, columns, x_stride, directions, WIDEN, COLUMNS,
                RANKS, TOKENS,
            )  # fmt: skip
            out = u + (begin + member[:, None]).to(tl.int64) * directions + direction[None, :]
            tl.store(out, total, mask=(member[:, None] < count) & kept[None, :])
        tile += tl.num_programs(1)
        count = tl.load(tiles + tile * WORDS + 2, mask=tile < most, other=0)


@triton.jit  # type: ignore[untyped-decorator]
def expand_tile(  # type: ignore[no-untyped-def]
    x, u, a, b, scale, ranks, table, gate, slot, begin, own, count, row, first_tile_row, part, columns, each, x_stride,
    directions, elements, segments,
    SHRINKS: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
    TOKENS: tl.constexpr, SPLITS: tl.constexpr, ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """`gate * B diag(scale) u` for a tile of one expert's tokens and a tile of rows: [TOKENS, ROWS].

    Where it SHRINKS, `u = A x` is summed here, in the order and to the bits of `shrink_kernel`; otherwise it is read.
    """
    member, direction = tl.arange(0, TOKENS), tl.arange(0, RANKS)
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
                    inputs = tl.zeros((TOKENS, RANKS), tl.float32)
                    if SHRINKS:
                        for split in range(SPLITS):
                            inputs += shrink_part(
                                x, a, own, count, slot, first + start + direction, inside, split, each, columns,
                                x_stride, directions, WIDEN, COLUMNS, RANKS, TOKENS,
                            )  # fmt: skip
                    else:
                        along = u + (begin + member[:, None]).to(tl.int64) * directions
                        along += first + start + direction[None, :]
                        known = (member[:, None] < count) & inside[None, :]
                        for split in tl.static_range(SPLITS):
                            inputs += tl.load(along + split * part, mask=known, other=0.0)
                    scales = tl.load(scale + slot * directions + first + start + direction, mask=inside, other=0.0)
                    at = b_row[:, None] + (start + direction)[None, :] * ROW_BLOCK
                    factors = tl.load(at, mask=own_rows[:, None] & inside[None, :], other=0).to(tl.float32)
                    total = tl.dot(inputs * scales[None, :], tl.trans(factors), total, input_precision="ieee")
        total *= tl.load(gate + begin + member, mask=member < count, other=0.0)[:, None]
    return total


def shrink_low_rank(x: Tensor, bank: LowRankBank, tiles: Tiles) -> Tensor:
    """`A x` of every pair of a token and its expert, in `splits(K)` parts.

    Semantics: `sum_s u[s, column, place] = A[slot] @ x[token]`, in fp32. Nothing is written beyond a slot's ranks.

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
    on_gpu.launch(
        shrink_kernel, (programs, tile_programs(programs, tiles.most), width),
        x, u, bank.a, bank.ranks, bank.table, tiles.table, tiles.token, tokens, tiles.most, columns,
        blocks_each(columns), x.stride(0), directions, len(bank.segments),
        WIDEN=widens(x, bank), COLUMNS=COLUMNS, RANKS=RANKS, TOKENS=TILE, SPLITS=parts, WORDS=WORDS, num_warps=_WARPS,
        num_stages=STAGES,
    )  # fmt: skip
    return u
