"""`expert_linear` on a GPU, in Triton."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kernels.expert_linear.bank import ROW_BLOCK, ExpertBank
from kernels.expert_linear.batch import MOST_DECODE_TOKENS, ExpertBatch
from kernels.expert_linear.low_rank import LowRankBank
from kernels.expert_linear.low_rank_triton import (
    INTERPRETED,
    RANKS,
    TOKEN_TILE,
    add_directions,
    expand_low_rank,
    shrink_low_rank,
)


@dataclass(frozen=True)
class Config:
    """Tile sizes of a launch; `entries` is how many of a row's entries are summed at once."""

    rows: int
    columns: int
    entries: int
    warps: int
    stages: int


def decode_config(rows: int) -> Config:
    """Narrower tiles for fewer rows, so that a small layer still fills the processor."""
    if rows <= 2048:
        return Config(16, 256, 8, 4, 3)
    return Config(32, 128, 8, 4, 4)


RESIDUAL_CONFIG = Config(64, 0, 8, 4, 1)


@triton.jit
def _entries_sum(x_row, index, value, kept):  # type: ignore[no-untyped-def]
    """Sum over the first axis of `value * x_row[index]`, in fp32."""
    picked = tl.load(x_row + index, mask=kept, other=0.0).to(tl.float32)
    return tl.sum(tl.where(kept, picked * value, 0.0), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def decode_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, y, index, value, scale, u, b, ranks, table, group_slot, group_start, group_token, group_gate,
    tokens, rows, columns, x_stride, weight_stride, entries, directions, elements, segments, groups,
    HAS_BIAS: tl.constexpr, HAS_SPARSE: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_LOW_RANK: tl.constexpr,
    WIDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ENTRIES: tl.constexpr, RANKS: tl.constexpr,
    TOKENS: tl.constexpr, ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of rows for TOKENS tokens: weights streamed once, then each group's entries and directions of these rows.

    A group's index, value and B are loaded once for all its tokens. A token outside the tile is skipped. `groups` is
    how many there may be: the first one without tokens ends them, as read when the kernel runs, for a captured launch
    is replayed with the groups of other steps. `u` is what `shrink_low_rank` made.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first_token = tl.program_id(1) * TOKENS
    token = first_token + tl.arange(0, TOKENS)
    column = tl.arange(0, COLUMNS)
    x_tile = x + token[:, None].to(tl.int64) * x_stride + column[None, :]
    weight_tile = weight + row[:, None].to(tl.int64) * weight_stride + column[None, :]
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for start in range(0, columns, COLUMNS):
        inside = column[None, :] < columns - start
        inputs = tl.load(x_tile + start, mask=(token[:, None] < tokens) & inside, other=0.0)
        weights = tl.load(weight_tile + start, mask=(row[:, None] < rows) & inside, other=0.0)
        if WIDEN:
            inputs, weights = inputs.to(tl.float32), weights.to(tl.float32)
        total = tl.dot(inputs, tl.trans(weights), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
    blocks = tl.cdiv(rows, ROW_BLOCK)
    entry = tl.arange(0, ENTRIES)
    group, begin, end = 0, 0, tl.load(group_start + 1)
    while begin < end:
        slot = tl.load(group_slot + group).to(tl.int64)
        if HAS_SPARSE:
            block = (slot * blocks + row // ROW_BLOCK) * entries
            for start in range(0, entries, ENTRIES):
                at = (block[None, :] + start + entry[:, None]) * ROW_BLOCK + (row % ROW_BLOCK)[None, :]
                kept = (start + entry[:, None] < entries) & (row[None, :] < rows)
                where = tl.load(index + at, mask=kept, other=0).to(tl.int32)
                what = tl.load(value + at, mask=kept, other=0).to(tl.float32)
                if HAS_SCALE:
                    what *= tl.load(scale + slot * blocks * ROW_BLOCK + row, mask=row < rows, other=0.0)[None, :]
                for member in range(begin, end):
                    own = tl.load(group_token + member)
                    if (own >= first_token) & (own < first_token + TOKENS):
                        added = _entries_sum(x + own.to(tl.int64) * x_stride, where, what, kept)
                        added *= tl.load(group_gate + member)
                        total += tl.where(token[:, None] == own, added[None, :], 0.0)
        if HAS_LOW_RANK:
            total = add_directions(
                total, u, b, ranks, table, group_token, group_gate, slot, begin, end, row, rows, first_token,
                directions, elements, segments, RANKS, TOKENS, ROW_BLOCK,
            )  # fmt: skip
        group, begin = group + 1, end
        end = tl.load(group_start + group + 1, mask=group < groups, other=0)
    out = y + token[:, None].to(tl.int64) * rows + row[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=(token[:, None] < tokens) & (row[None, :] < rows))


@triton.jit  # type: ignore[untyped-decorator]
def residual_kernel(  # type: ignore[no-untyped-def]
    x, y, index, value, scale, group_slot, group_start, group_token, group_gate, first_group,
    rows, x_stride, entries,
    HAS_SCALE: tl.constexpr, ROWS: tl.constexpr, ENTRIES: tl.constexpr, TOKENS: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """Add one group's residual to a tile of rows of up to TOKENS of its tokens.

    The grid is made for the largest group; programs beyond the end of a smaller one stop at once.
    """
    group = first_group + tl.program_id(1)
    begin = tl.load(group_start + group) + tl.program_id(2) * TOKENS
    end = tl.minimum(tl.load(group_start + group + 1), begin + TOKENS)
    if begin >= end:
        return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    member = tl.arange(0, TOKENS)
    kept_member = begin + member < end
    token = tl.load(group_token + begin + member, mask=kept_member, other=0).to(tl.int64)
    slot = tl.load(group_slot + group).to(tl.int64)
    blocks = tl.cdiv(rows, ROW_BLOCK)
    block = (slot * blocks + row // ROW_BLOCK) * entries
    entry = tl.arange(0, ENTRIES)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for start in range(0, entries, ENTRIES):
        at = (block[None, :] + start + entry[:, None]) * ROW_BLOCK + (row % ROW_BLOCK)[None, :]
        kept = (start + entry[:, None] < entries) & (row[None, :] < rows)
        where = tl.load(index + at, mask=kept, other=0).to(tl.int32)
        what = tl.load(value + at, mask=kept, other=0).to(tl.float32)
        for one in range(end - begin):
            own = tl.load(group_token + begin + one).to(tl.int64)
            added = _entries_sum(x + own * x_stride, where, what, kept)
            total += tl.where(member[:, None] == one, added[None, :], 0.0)
    if HAS_SCALE:
        total *= tl.load(scale + slot * blocks * ROW_BLOCK + row, mask=row < rows, other=0.0)[None, :]
    total *= tl.load(group_gate + begin + member, mask=kept_member, other=0.0)[:, None]
    out = y + token[:, None] * rows + row[None, :]
    mask = kept_member[:, None] & (row[None, :] < rows)
    tl.store(out, (tl.load(out, mask=mask, other=0.0).to(tl.float32) + total).to(y.dtype.element_ty), mask=mask)


def expert_linear_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bank: ExpertBank | None,
    batch: ExpertBatch,
    low_rank: LowRankBank | None = None,
) -> Tensor:
    """A decode step in one kernel; many tokens as torch's product and a residual kernel for each column of slots.

    Where experts have a low-rank part, one more kernel before it makes `u = scale * A x` of all groups.

    Shapes and semantics are those of `expert_linear`. No atomics and no split sums: the result is the same every time.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    if x.shape[0] <= MOST_DECODE_TOKENS and batch.has_experts:
        y = x.new_empty(x.shape[0], weight.shape[0])
        launch_decode(x, weight, bias, y, bank, batch, decode_config(weight.shape[0]), low_rank)
        return y
    y = F.linear(x, weight, bias)
    if bank is not None:
        launch_residuals(x, y, bank, batch)
    if low_rank is not None:
        expand_low_rank(shrink_low_rank(x, low_rank, batch), y, low_rank, batch)
    return y


def launch_decode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    bank: ExpertBank | None,
    batch: ExpertBatch,
    config: Config,
    low_rank: LowRankBank | None = None,
) -> None:
    """Product and residuals of up to `MOST_DECODE_TOKENS` tokens, some with experts, written to `y`."""
    tokens, columns = x.shape
    rows = weight.shape[0]
    # What a kernel is not to read is any tensor.
    scale = None if bank is None else bank.scale
    sparse = (weight, weight) if bank is None else (bank.index, bank.value)
    factors, sizes = (weight, weight, weight, weight), (0, 0, 0)
    if low_rank is not None:
        factors = (shrink_low_rank(x, low_rank, batch), low_rank.b, low_rank.ranks, low_rank.table)
        sizes = (low_rank.a.shape[1], low_rank.b.shape[1], len(low_rank.segments))
    decode_kernel[triton.cdiv(rows, config.rows), triton.cdiv(tokens, TOKEN_TILE)](
        x, weight, weight if bias is None else bias, y, *sparse, weight if scale is None else scale, *factors,
        batch.group_slot, batch.group_start, batch.group_token, batch.group_gate,
        tokens, rows, columns, x.stride(0), weight.stride(0), 0 if bank is None else bank.entries, *sizes,
        len(batch.group_slot),
        HAS_BIAS=bias is not None, HAS_SPARSE=bank is not None, HAS_SCALE=scale is not None,
        HAS_LOW_RANK=low_rank is not None, WIDEN=INTERPRETED, ROWS=config.rows, COLUMNS=config.columns,
        ENTRIES=config.entries, RANKS=RANKS, TOKENS=TOKEN_TILE, ROW_BLOCK=ROW_BLOCK,
        num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True,
    )  # fmt: skip


def launch_residuals(x: Tensor, y: Tensor, bank: ExpertBank, batch: ExpertBatch) -> None:
    """The residuals of any number of tokens, added to their product in `y`."""
    rows, config = y.shape[1], RESIDUAL_CONFIG
    # One launch a column: inside a column every token is in one group at most, so no two programs share an output.
    for first, groups in batch.columns:
        grid = (triton.cdiv(rows, config.rows), groups, triton.cdiv(batch.largest_group, TOKEN_TILE))
        residual_kernel[grid](
            x, y, bank.index, bank.value, bank.value if bank.scale is None else bank.scale,
            batch.group_slot, batch.group_start, batch.group_token, batch.group_gate, first,
            rows, x.stride(0), bank.entries,
            HAS_SCALE=bank.scale is not None, ROWS=config.rows, ENTRIES=config.entries, TOKENS=TOKEN_TILE,
            ROW_BLOCK=ROW_BLOCK, num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True,
        )  # fmt: skip
