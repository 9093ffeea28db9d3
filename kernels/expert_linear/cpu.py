"""`expert_linear` on the CPU with torch alone, for where nothing is compiled."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.expert_linear.bank import ExpertBank
from kernels.expert_linear.batch import ExpertBatch
from kernels.expert_linear.product import linear


def expert_linear_torch(x: Tensor, weight: Tensor, bias: Tensor | None, bank: ExpertBank, batch: ExpertBatch) -> Tensor:
    """The product by torch, then every group's residual, added in fp32.

    Shapes and semantics are those of `expert_linear`.
    """
    y = linear(x, weight, bias).to(torch.float32)
    columns = x.to(torch.float32).T.contiguous()
    for group in batch.groups:
        index, value = bank.rows(group.slot)
        entries = value.to(torch.float32).T.contiguous()
        picked = columns.index_select(1, group.tokens)
        residual = torch.zeros(bank.out_features, len(group.tokens), device=x.device)
        # One entry of every row at a time, each step elementwise: a token's sum is made in the same order, and so
        # comes out the same to the last bit, whoever shares the batch.
        for column, entry in zip(index.T, entries, strict=True):
            residual += picked.index_select(0, column) * entry[:, None]
        y.index_add_(0, group.tokens, (residual * group.gates).T)
    return y.to(x.dtype)
