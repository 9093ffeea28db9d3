"""`expert_linear` with torch alone. It is used if the compiled kernels are not available."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.expert_linear.bank import ExpertBank
from kernels.expert_linear.batch import ExpertBatch, ExpertGroup
from kernels.expert_linear.low_rank import LowRankBank
from kernels.expert_linear.product import linear


def expert_linear_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bank: ExpertBank | None,
    batch: ExpertBatch,
    low_rank: LowRankBank | None = None,
) -> Tensor:
    """The product by torch, then every group's residuals, added in fp32.

    Shapes and semantics are those of `expert_linear`.
    """
    y = linear(x, weight, bias).to(torch.float32)
    wide = x.to(torch.float32)
    if bank is not None:
        columns = wide.T.contiguous()
        for group in batch.groups:
            _add_sparse(y, columns, bank, group)
    if low_rank is not None:
        for group in batch.groups:
            _add_low_rank(y, wide, low_rank, group)
    return y.to(x.dtype)


def _add_sparse(y: Tensor, columns: Tensor, bank: ExpertBank, group: ExpertGroup) -> None:
    index, value = bank.rows(group.slot)
    entries = value.to(torch.float32).T.contiguous()
    picked = columns.index_select(1, group.tokens)
    residual = torch.zeros(bank.out_features, len(group.tokens), device=y.device)
    # One entry of every row at a time, each step elementwise: a token's sum is made in the same order, and so comes out
    # the same to the last bit in every batch.
    for column, entry in zip(index.T, entries, strict=True):
        residual += picked.index_select(0, column) * entry[:, None]
    y.index_add_(0, group.tokens, (residual * group.gates).T)


def _add_low_rank(y: Tensor, x: Tensor, bank: LowRankBank, group: ExpertGroup) -> None:
    inputs = x.index_select(0, group.tokens)
    for segment, part in zip(bank.segments, bank.factors(group.slot), strict=True):
        if part is not None:
            a, b, scale = (factor.to(torch.float32) for factor in part)
            residual = (inputs @ a.T * scale) @ b.T * group.gates[:, None]
            y[:, segment.first_row : segment.first_row + segment.rows].index_add_(0, group.tokens, residual)
