"""What `expert_linear` means, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.expert_linear.bank import ExpertBank
from kernels.expert_linear.batch import ExpertBatch


def expert_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, bank: ExpertBank | None, batch: ExpertBatch | None
) -> Tensor:
    """The truth that the faster paths are tested against.

    Semantics: `y[t] = weight @ x[t] + bias + sum_j gates[t, j] * E[slots[t, j]] @ x[t]`, in fp32 (fp64 where `x` is
    fp64), each expert made dense.

    Args:
        x: `[T, K]`.
        weight: `[N, K]`.
        bias: `[N]` or None.
        bank: residuals of the layer, or None.
        batch: slots and gates of the T tokens, or None.

    Returns:
        `[T, N]` in fp32, or fp64.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    inputs = x.to(dtype)
    y = inputs @ weight.to(dtype).T
    if bias is not None:
        y = y + bias.to(dtype)
    if bank is None or batch is None:
        return y
    for token, (slots, gates) in enumerate(zip(batch.slots.tolist(), batch.gates.tolist(), strict=True)):
        for slot, gate in zip(slots, gates, strict=True):
            if slot >= 0:
                y[token] += gate * (dense_expert(bank, slot, dtype) @ inputs[token])
    return y


def dense_expert(bank: ExpertBank, slot: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One slot's residual as a dense `[N, K]` matrix; entries of one place add up."""
    index, value = bank.rows(slot)
    dense = torch.zeros(bank.out_features, bank.in_features, dtype=dtype, device=value.device)
    return dense.scatter_add_(1, index, value.to(dtype))
