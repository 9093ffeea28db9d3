"""Rows of the experts' low-rank residuals, for a weight that is looked up by row."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.expert_linear.bank import ROW_BLOCK
from kernels.expert_linear.batch import ExpertBatch
from kernels.expert_linear.low_rank import LowRankBank, LowRankSegment

_TOKENS_AT_ONCE = 64


def add_low_rank_rows(x: Tensor, rows: Tensor, bank: LowRankBank, batch: ExpertBatch) -> None:
    """Add to every token the row of its experts' residuals that it looks up.

    Semantics: `x[t] += sum_j gates[t, j] * B[slot][rows[t]] diag(scale[slot]) A[slot]`, `slot = slots[t, j]`, -1 adding
    nothing; in fp32, each token for itself. Nothing is read back from the device, so it can be captured.

    Args:
        x: `[T, K]` fp32, changed.
        rows: `[T]` int64, the rows that the tokens look up, 0 to N - 1.
        bank: the low-rank residuals of the weight `[N, K]`; on the device of `x`.
        batch: the plan of the T tokens.

    Raises:
        ValueError: shapes or slots do not fit together.
    """
    if x.shape != (batch.tokens, bank.in_features) or rows.shape != (batch.tokens,):
        raise ValueError(
            f"x must be [{batch.tokens}, {bank.in_features}] and rows [{batch.tokens}], not {list(x.shape)} and "
            f"{list(rows.shape)}"
        )
    if batch.highest_slot >= bank.slots:
        raise ValueError(f"slot {batch.highest_slot} is not in this bank of {bank.slots} slots")
    if not batch.has_experts:
        return
    for column in range(batch.slots.shape[1]):
        slots = batch.slots[:, column].to(torch.int64)
        gates = batch.gates[:, column] * (slots >= 0)
        for place, segment in enumerate(bank.segments):
            if segment.most_rank:
                _add_segment(x, rows, bank, place, segment, slots.clamp(min=0), gates)


def _add_segment(
    x: Tensor, rows: Tensor, bank: LowRankBank, place: int, segment: LowRankSegment, slots: Tensor, gates: Tensor
) -> None:
    direction = torch.arange(segment.most_rank, device=x.device)
    ranks = bank.ranks[slots, place].to(torch.int64)
    inside = (rows >= segment.first_row) & (rows < segment.first_row + segment.rows)
    block = torch.where(inside, rows // ROW_BLOCK - segment.first_block, 0)
    # [T, r] places in a slot of B; directions beyond a slot's rank read its first element, and count nothing.
    kept = (direction < ranks[:, None]) & inside[:, None]
    element = (block[:, None] * ranks[:, None] + direction) * ROW_BLOCK + (rows % ROW_BLOCK)[:, None]
    b = bank.b[slots[:, None], segment.start + torch.where(kept, element, 0)].to(torch.float32)
    directions = slice(segment.first_rank, segment.first_rank + segment.most_rank)
    weights = torch.where(kept, b * bank.scale[slots, directions] * gates[:, None], 0.0)
    for first in range(0, len(x), _TOKENS_AT_ONCE):
        part = slice(first, first + _TOKENS_AT_ONCE)
        a = bank.a[slots[part], directions].to(torch.float32)
        # One product for each token: its bits do not follow the number of the others. A's rows beyond a slot's rank are
        # what an earlier expert left there, which must not bring its infinities.
        a.masked_fill_(~kept[part, :, None], 0.0)
        x[part] += torch.bmm(weights[part, None, :], a)[:, 0]
