"""What `expert_linear` means, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.expert_linear.bank import ExpertBank
from kernels.expert_linear.batch import ExpertBatch
from kernels.expert_linear.low_rank import LowRankBank


def expert_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bank: ExpertBank | None,
    batch: ExpertBatch | None,
    low_rank: LowRankBank | None = None,
) -> Tensor:
    """The truth that the faster paths are tested against.

    Semantics: `y[t] = weight @ x[t] + bias + sum_j gates[t, j] * E[slots[t, j]] @ x[t]`, in fp32 (fp64 where `x` is
    fp64), each expert made dense: its sparse part and its low-rank part together.

    Args:
        x: `[T, K]`.
        weight: `[N, K]`.
        bias: `[N]` or None.
        bank: sparse residuals of the layer, or None.
        batch: slots and gates of the T tokens, or None.
        low_rank: low-rank residuals of the layer, or None.

    Returns:
        `[T, N]` in fp32, or fp64.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    inputs = x.to(dtype)
    y = inputs @ weight.to(dtype).T
    if bias is not None:
        y = y + bias.to(dtype)
    if batch is None:
        return y
    for token, (slots, gates) in enumerate(zip(batch.slots.tolist(), batch.gates.tolist(), strict=True)):
        for slot, gate in zip(slots, gates, strict=True):
            if slot >= 0 and bank is not None:
                y[token] += gate * (dense_expert(bank, slot, dtype) @ inputs[token])
            if slot >= 0 and low_rank is not None:
                y[token] += gate * (dense_low_rank(low_rank, slot, dtype) @ inputs[token])
    return y


def dense_expert(bank: ExpertBank, slot: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One slot's residual as a dense `[N, K]` matrix; entries of one place add up."""
    index, value = bank.rows(slot)
    dense = torch.zeros(bank.out_features, bank.in_features, dtype=dtype, device=value.device)
    return dense.scatter_add_(1, index, value.to(dtype))


def dense_low_rank(bank: LowRankBank, slot: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One slot's low-rank residual as a dense `[N, K]` matrix."""
    dense = torch.zeros(bank.out_features, bank.in_features, dtype=dtype, device=bank.a.device)
    for segment, part in zip(bank.segments, bank.factors(slot), strict=True):
        if part is not None:
            a, b, scale = (factor.to(dtype) for factor in part)
            dense[segment.first_row : segment.first_row + segment.rows] = (b * scale) @ a
    return dense
