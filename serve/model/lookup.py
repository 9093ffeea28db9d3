"""What experts add to rows of an embedding that are looked up: the lookup's counterpart of `expert_linear`.

Everything is elementwise, so that a token's row is the same to the last bit whatever else is looked up, and
nothing is read back from a device, so that a step with it can be captured.
"""

import torch
from torch import Tensor

from kernels.expert_linear import ExpertBank, ExpertBatch, LowRankBank
from kernels.expert_linear.bank import ROW_BLOCK

CHUNK = 64
"""Tokens whose products of all directions are in memory at once."""


def add_sparse_rows(rows: Tensor, tokens: Tensor, bank: ExpertBank, experts: ExpertBatch) -> None:
    """Add the rows of sparse residuals.

    Semantics: `rows[t] += sum_j gates[t, j] * S[slots[t, j]][tokens[t]]`, slot -1 adding nothing.

    Args:
        rows: [T, K] float32; changed.
        tokens: [T] int64, the rows that were looked up.
        bank: the residuals of the embedding's weight.
        experts: the plan of the T tokens.
    """
    blocks, lanes = tokens // ROW_BLOCK, tokens % ROW_BLOCK
    for slots, gates in _columns(experts):
        held = slots.clamp(min=0)
        place = (held, blocks, slice(None), lanes)
        values = bank.value[place].to(torch.float32) * gates[:, None]
        if bank.scale is not None:
            values *= bank.scale[held, tokens][:, None]
        rows.scatter_add_(1, columns_at(bank.index, place, signed=rows.device.type != "cpu"), values)


def add_low_rank_rows(rows: Tensor, tokens: Tensor, bank: LowRankBank, experts: ExpertBatch) -> None:
    """Add the rows of low-rank residuals.

    Semantics: `rows[t] += sum_j gates[t, j] * (B diag(scale) A)[slots[t, j]][tokens[t]]`, slot -1 adding nothing; one
    direction after another.

    Args:
        rows: [T, K] float32; changed.
        tokens: [T] int64, the rows that were looked up.
        bank: the residuals of the embedding's weight, of one segment.
        experts: the plan of the T tokens.
    """
    for slots, gates in _columns(experts):
        for first in range(0, len(tokens), CHUNK):
            some = slice(first, first + CHUNK)
            _add_products(rows[some], tokens[some], slots[some], gates[some], bank)


def _add_products(rows: Tensor, tokens: Tensor, slots: Tensor, gates: Tensor, bank: LowRankBank) -> None:
    held = slots.clamp(min=0)
    ranks = (bank.ranks[held, 0].to(torch.int64) * (slots >= 0))[:, None]
    most = int(ranks.max()) if rows.device.type == "cpu" else bank.a.shape[1]
    if not most:
        return
    directions = torch.arange(most, device=tokens.device)
    inside = directions < ranks
    blocks, lanes = (tokens // ROW_BLOCK)[:, None], (tokens % ROW_BLOCK)[:, None]
    place = ((blocks * ranks + directions) * ROW_BLOCK + lanes) * inside
    factors = bank.b[held[:, None], place].to(torch.float32) * bank.scale[held, :most]
    factors *= gates[:, None] * inside
    terms = bank.a[:, :most][held].to(torch.float32) * factors[:, :, None]
    # One after another: a sum over the dimension may be made in another order for another number of tokens.
    for term in terms.unbind(1):
        rows += term


def columns_at(index: Tensor, place: tuple[Tensor | slice, ...], signed: bool) -> Tensor:
    """Some of a bank's column numbers, as int64.

    Args:
        index: the bank's.
        place: indices into it.
        signed: read numbers of 16 bits as signed ones first, for torch does not index unsigned ones on a GPU.
    """
    if signed and index.dtype == torch.uint16:
        return index.view(torch.int16)[place].to(torch.int64) & 0xFFFF
    return index[place].to(torch.int64)


def _columns(experts: ExpertBatch) -> list[tuple[Tensor, Tensor]]:
    """Slots [T] int64 and gates [T] of each column of the plan; a gate is 0 for no expert."""
    slots = experts.slots.to(torch.int64)
    gates = experts.gates * (slots >= 0)
    return list(zip(slots.unbind(1), gates.unbind(1), strict=True))
