"""What a layer's experts add on a GPU, in one launch for each column of slots: sparse and low-rank parts together."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu
from kernels.expert_linear.bank import ROW_BLOCK, ExpertBank
from kernels.expert_linear.low_rank import LowRankBank
from kernels.expert_linear.low_rank_triton import COLUMNS, RANKS, STAGES, blocks_each, expand_tile, splits, widens
from kernels.expert_linear.onto import Onto, finish
from kernels.expert_linear.sparse_triton import SPARSE, add_entries
from kernels.expert_linear.tiles import TILE, WORDS, Tiles, tile_programs

ROWS = 64
"""Rows of a program that expands what was shrunk before."""
SHRINKING_ROWS = 256
"""Rows of a program that shrinks by itself: each reads all of A, so there should be few."""

MOST_RANK = 64
MOST_COLUMNS = 5120
MOST_PROGRAMS = 264
MOST_BYTES = 12 * 2**20
"""Up to here programs shrink by themselves: the directions that read x once, the columns of x that one program sums,
programs, and the bytes of A that they read together, nearly all of them from the second-level cache.

Above these limits a separate `shrink_kernel` launch is faster, according to `benchmarks.gpu.roofline`. No value is
measured.
"""


def rows_each(sparse: bool, shrinks: bool) -> int:
    """Rows of a program: those of `sparse_kernel`, whose lanes hold one each, if there are entries."""
    return SPARSE.rows if sparse else SHRINKING_ROWS if shrinks else ROWS


def shrinks_by_itself(low_rank: LowRankBank, sparse: bool, tiles: int) -> bool:
    """Whether every program of a launch computes the `A x` that it needs; otherwise `shrink_kernel` does so before.

    A result does not depend on this: its sums have the same order.

    Args:
        low_rank: the layer's low-rank residuals.
        sparse: whether the launch has sparse residuals, too.
        tiles: of tokens, that the launch has room for.
    """
    each, ranks = rows_each(sparse, True), [one.most_rank for one in low_rank.segments]
    read = sum(triton.cdiv(one.rows, each) * one.most_rank for one in low_rank.segments)
    nbytes = tiles * read * low_rank.in_features * low_rank.a.element_size()
    programs = tiles * triton.cdiv(low_rank.out_features, each)
    return (
        max(ranks) <= MOST_RANK
        and low_rank.in_features <= MOST_COLUMNS
        and programs <= MOST_PROGRAMS
        and nbytes <= MOST_BYTES
    )


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["column", "width", "tokens", "most", "each", "segments", "entries"]
)
def residual_kernel(  # type: ignore[no-untyped-def]
    x, y, sums, bias, u, a, b, scale, ranks, table, index, value, row_scale, tiles, token, gate, column, width, tokens,
    most, rows, columns, each, x_stride, directions, elements, segments, entries,
    SPARSE: tl.constexpr, SHRINKS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, FIRST: tl.constexpr,
    LAST: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
    TOKENS: tl.constexpr, SPLITS: tl.constexpr, UNROLL: tl.constexpr, ROW_BLOCK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """All residuals of one column of slots, for a tile of rows and every n-th tile of tokens.

    The entries' sums, of one dimension and one row a lane, and those of the factors, tiles of a tensor core, are laid
    out differently. They are added in memory that only this program reads and writes.
    """
    first_tile_row = tl.program_id(0) * ROWS
    row = first_tile_row + tl.arange(0, ROWS)
    tiles += column * most * WORDS
    token += column * tokens
    gate += column * tokens
    part = width.to(tl.int64) * tokens * directions
    u += column.to(tl.int64) * tokens * directions
    member = tl.arange(0, TOKENS)
    tile = tl.program_id(1)
    count = tl.load(tiles + tile * WORDS + 2)
    while count > 0:
        slot = tl.load(tiles + tile * WORDS).to(tl.int64)
        begin = tl.load(tiles + tile * WORDS + 1)
        own = tl.load(token + begin + member, mask=member < count, other=0).to(tl.int64)
        if SPARSE:
            add_entries(
                x, y, sums, bias, index, value, row_scale, token, gate, slot, begin, count, row, rows, x_stride,
                entries, HAS_BIAS, HAS_SCALE, FIRST, False, UNROLL, ROW_BLOCK,
            )  # fmt: skip
        total = expand_tile(
            x, u, a, b, scale, ranks, table, gate, slot, begin, own, count, row, first_tile_row, part, columns, each,
            x_stride, directions, elements, segments,
            SHRINKS, WIDEN, ROWS, COLUMNS, RANKS, TOKENS, SPLITS, ROW_BLOCK,
        )  # fmt: skip
        if SPARSE:
            tl.debug_barrier()  # other lanes wrote what this one reads
        finish(total, y, sums, bias, own, member < count, row, rows, HAS_BIAS, FIRST and not SPARSE, LAST)
        tile += tl.num_programs(1)
        count = tl.load(tiles + tile * WORDS + 2, mask=tile < most, other=0)


def launch_residual(
    x: Tensor, onto: Onto, bank: ExpertBank | None, low_rank: LowRankBank, u: Tensor | None, tiles: Tiles, column: int
) -> None:
    """All residuals of one column of slots.

    Semantics: `gate * (S[slot] @ x[token] + B[slot] @ (scale[slot] * (A[slot] @ x[token])))`, added as `onto` says.

    Args:
        x: `[T, K]`, of unit stride along K.
        onto: what is written. Its sums are not y if there is a bank.
        bank: the layer's sparse residuals S, or None.
        low_rank: its low-rank residuals.
        u: of `shrink_low_rank`; None if `shrinks_by_itself` says so, and `A x` is computed here.
        tiles: those of the T tokens.
        column: which column.
    """
    sparse, shrinks = bank is not None, u is None
    rows, each = onto.y.shape[1], rows_each(sparse, shrinks)
    row_tiles, wide = triton.cdiv(rows, each), each > SPARSE.rows
    most_rank = max(one.most_rank for one in low_rank.segments)
    ranks = max(RANKS, triton.next_power_of_2(most_rank)) if shrinks else RANKS
    # What a kernel is not to read is any tensor.
    entries = (low_rank.b, low_rank.b) if bank is None else (bank.index, bank.value)
    row_scale = low_rank.scale if bank is None or bank.scale is None else bank.scale
    on_gpu.launch(
        residual_kernel, (row_tiles, tile_programs(row_tiles, tiles.most)),
        x, *onto.tensors, low_rank.scale if u is None else u, low_rank.a, low_rank.b, low_rank.scale, low_rank.ranks,
        low_rank.table, *entries, row_scale, tiles.table, tiles.token, tiles.gate, column, *tiles.token.shape,
        tiles.most, rows, x.shape[1], blocks_each(x.shape[1]), x.stride(0), low_rank.a.shape[1], low_rank.b.shape[1],
        len(low_rank.segments), 0 if bank is None else bank.entries,
        SPARSE=sparse, SHRINKS=shrinks, HAS_BIAS=onto.bias is not None,
        HAS_SCALE=bank is not None and bank.scale is not None, FIRST=onto.first, LAST=onto.last,
        WIDEN=widens(x, low_rank), ROWS=each, COLUMNS=COLUMNS, RANKS=ranks, TOKENS=TILE, SPLITS=splits(x.shape[1]),
        UNROLL=SPARSE.unroll, ROW_BLOCK=ROW_BLOCK, WORDS=WORDS, num_warps=8 if wide else SPARSE.warps,
        num_stages=STAGES,
    )  # fmt: skip
