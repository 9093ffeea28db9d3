"""The two halves of a low-rank residual on a GPU, in Triton, grouped by expert as Punica's SGMV (arXiv 2310.18547)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.expert_linear.bank import ROW_BLOCK
from kernels.expert_linear.batch import ExpertBatch
from kernels.expert_linear.low_rank import LowRankBank

TOKEN_TILE = 16
"""The fewest rows a tensor core multiplies."""

INTERPRETED = triton.knobs.runtime.interpret
"""Triton's interpreter multiplies the bits of bf16 numbers as integers: there they are widened first, which
changes no product and no sum."""

RANKS = 16
"""Directions that are summed at once."""
_COLUMNS = 128
_ROWS = 64
_WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def shrink_kernel(  # type: ignore[no-untyped-def]
    x, u, a, scale, ranks, table, group_slot, group_start, group_token,
    columns, x_stride, directions, segments,
    WIDEN: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """RANKS directions of `u = scale * A x` for up to TOKENS tokens of one group.

    The grid is made for the largest group; programs beyond the end of a smaller one stop at once. Directions beyond the
    ranks of the group's slot are neither read nor of use to those who read `u`.
    """
    group = tl.program_id(1)
    begin = tl.load(group_start + group) + tl.program_id(2) * TOKENS
    end = tl.minimum(tl.load(group_start + group + 1), begin + TOKENS)
    if begin >= end:
        return
    slot = tl.load(group_slot + group).to(tl.int64)
    direction = tl.program_id(0) * RANKS + tl.arange(0, RANKS)
    kept = direction < 0
    for segment in range(segments):
        first = tl.load(table + segment * 4 + 2)
        kept |= (direction >= first) & (direction < first + tl.load(ranks + slot * segments + segment))
    if tl.max(kept.to(tl.int32), axis=0) == 0:
        return
    member = begin + tl.arange(0, TOKENS)
    token = tl.load(group_token + member, mask=member < end, other=0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    x_tile = x + token[:, None] * x_stride + column[None, :]
    a_tile = a + (slot * directions + direction[:, None]) * columns + column[None, :]
    total = tl.zeros((TOKENS, RANKS), tl.float32)
    for start in range(0, columns, COLUMNS):
        inside = column[None, :] < columns - start
        inputs = tl.load(x_tile + start, mask=(member[:, None] < end) & inside, other=0.0)
        factors = tl.load(a_tile + start, mask=kept[:, None] & inside, other=0)
        if WIDEN:
            inputs, factors = inputs.to(tl.float32), factors.to(tl.float32)
        total = tl.dot(inputs, tl.trans(factors.to(inputs.dtype)), total, input_precision="ieee")
    total *= tl.load(scale + slot * directions + direction, mask=kept, other=0.0)[None, :]
    out = u + member[:, None].to(tl.int64) * directions + direction[None, :]
    tl.store(out, total, mask=(member[:, None] < end) & kept[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def add_directions(  # type: ignore[no-untyped-def]
    total, u, b, ranks, table, group_token, group_gate, slot, begin, end, row, rows, first_token,
    directions, elements, segments, RANKS: tl.constexpr, TOKENS: tl.constexpr, ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """`total [TOKENS, ROWS]` and `gate * B u` of those of one group's tokens that are in the tile, for rows `row`.

    Every row reads as many directions as its own segment has; rows of several segments may share the tile.
    """
    token = first_token + tl.arange(0, TOKENS)
    direction = tl.arange(0, RANKS)
    segment = row * 0
    for other in range(1, segments):
        segment += (row >= tl.load(table + other * 4)).to(segment.dtype)
    rank = tl.load(ranks + slot * segments + segment, mask=row < rows, other=0)
    first = tl.load(table + segment * 4 + 2)
    block = row // ROW_BLOCK - tl.load(table + segment * 4) // ROW_BLOCK
    origin = slot * elements + tl.load(table + segment * 4 + 3) + block * rank * ROW_BLOCK + row % ROW_BLOCK
    for start in range(0, tl.max(rank, axis=0), RANKS):
        kept = start + direction[:, None] < rank[None, :]
        at = origin[None, :] + (start + direction[:, None]) * ROW_BLOCK
        what = tl.load(b + at, mask=kept, other=0).to(tl.float32)
        for member in range(begin, end):
            own = tl.load(group_token + member)
            if (own >= first_token) & (own < first_token + TOKENS):
                along = u + member * directions + first[None, :] + start + direction[:, None]
                added = tl.sum(what * tl.load(along, mask=kept, other=0.0), axis=0)
                added *= tl.load(group_gate + member)
                total += tl.where(token[:, None] == own, added[None, :], 0.0)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def expand_kernel(  # type: ignore[no-untyped-def]
    u, y, b, ranks, table, group_slot, group_start, group_token, group_gate, first_group,
    rows, directions, elements, segments,
    ROWS: tl.constexpr, RANKS: tl.constexpr, TOKENS: tl.constexpr, ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """Add `gate * B u` to a tile of rows of up to TOKENS of one group's tokens."""
    group = first_group + tl.program_id(1)
    begin = tl.load(group_start + group) + tl.program_id(2) * TOKENS
    end = tl.minimum(tl.load(group_start + group + 1), begin + TOKENS)
    if begin >= end:
        return
    slot = tl.load(group_slot + group).to(tl.int64)
    first_tile_row = tl.program_id(0) * ROWS
    row = first_tile_row + tl.arange(0, ROWS)
    member = begin + tl.arange(0, TOKENS)
    direction = tl.arange(0, RANKS)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for segment in range(segments):
        first_row, last_row = tl.load(table + segment * 4), tl.load(table + segment * 4 + 1)
        if (first_row < first_tile_row + ROWS) & (last_row > first_tile_row):
            rank = tl.load(ranks + slot * segments + segment)
            first, origin = tl.load(table + segment * 4 + 2), tl.load(table + segment * 4 + 3)
            block = row // ROW_BLOCK - first_row // ROW_BLOCK
            own = (row >= first_row) & (row < last_row)
            b_row = b + slot * elements + origin + block * rank * ROW_BLOCK + row % ROW_BLOCK
            for start in range(0, rank, RANKS):
                inside = start + direction < rank
                at = b_row[:, None] + (start + direction)[None, :] * ROW_BLOCK
                factors = tl.load(at, mask=own[:, None] & inside[None, :], other=0).to(tl.float32)
                along = u + member[:, None].to(tl.int64) * directions + first + start + direction[None, :]
                inputs = tl.load(along, mask=(member[:, None] < end) & inside[None, :], other=0.0)
                total = tl.dot(inputs, tl.trans(factors), total, input_precision="ieee")
    total *= tl.load(group_gate + member, mask=member < end, other=0.0)[:, None]
    token = tl.load(group_token + member, mask=member < end, other=0).to(tl.int64)
    out = y + token[:, None] * rows + row[None, :]
    mask = (member[:, None] < end) & (row[None, :] < rows)
    tl.store(out, (tl.load(out, mask=mask, other=0.0).to(tl.float32) + total).to(y.dtype.element_ty), mask=mask)


def shrink_low_rank(x: Tensor, bank: LowRankBank, batch: ExpertBatch) -> Tensor:
    """`scale * A x` of every pair of a token and its expert.

    Semantics: `u[pair] = scale[slot] * (A[slot] @ x[token])`, in fp32. Nothing is written beyond a slot's ranks.

    Args:
        x: `[T, K]`, of unit stride along K.
        bank: the layer's low-rank residuals.
        batch: the plan of the T tokens.

    Returns:
        `[P, R]` fp32, pairs in the order of `batch.group_token`.
    """
    directions = bank.a.shape[1]
    u = x.new_empty(len(batch.group_token), directions, dtype=torch.float32)
    grid = (triton.cdiv(directions, RANKS), len(batch.group_slot), triton.cdiv(batch.largest_group, TOKEN_TILE))
    same = bank.a.dtype in {x.dtype, torch.int8}
    shrink_kernel[grid](
        x, u, bank.a, bank.scale, bank.ranks, bank.table, batch.group_slot, batch.group_start, batch.group_token,
        x.shape[1], x.stride(0), directions, len(bank.segments),
        WIDEN=INTERPRETED or not same, COLUMNS=_COLUMNS, RANKS=RANKS, TOKENS=TOKEN_TILE, num_warps=_WARPS,
    )  # fmt: skip
    return u


def expand_low_rank(u: Tensor, y: Tensor, bank: LowRankBank, batch: ExpertBatch) -> None:
    """Add the experts' low-rank residuals of any number of tokens to their product.

    Semantics: `y[token] += gate * (B[slot] @ u[pair])`, rounded to the dtype of `y` once for each column of slots.

    Args:
        u: `[P, R]` fp32, of `shrink_low_rank`.
        y: `[T, N]` contiguous; changed.
        bank: the layer's low-rank residuals.
        batch: the plan of the T tokens.
    """
    # One launch a column: inside a column every token is in one group at most, so no two programs share an output.
    for first, groups in batch.columns:
        grid = (triton.cdiv(y.shape[1], _ROWS), groups, triton.cdiv(batch.largest_group, TOKEN_TILE))
        expand_kernel[grid](
            u, y, bank.b, bank.ranks, bank.table,
            batch.group_slot, batch.group_start, batch.group_token, batch.group_gate, first,
            y.shape[1], bank.a.shape[1], bank.b.shape[1], len(bank.segments),
            ROWS=_ROWS, RANKS=RANKS, TOKENS=TOKEN_TILE, ROW_BLOCK=ROW_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
