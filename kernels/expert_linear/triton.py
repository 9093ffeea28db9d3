"""`expert_linear` on a GPU: residuals by Triton, then the product by torch, added onto them."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.expert_linear.bank import ExpertBank
from kernels.expert_linear.batch import ExpertBatch
from kernels.expert_linear.low_rank import LowRankBank
from kernels.expert_linear.low_rank_triton import shrink_low_rank
from kernels.expert_linear.onto import Onto
from kernels.expert_linear.residual_triton import launch_residual, shrinks_by_itself
from kernels.expert_linear.sparse_triton import launch_sparse


def expert_linear_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bank: ExpertBank | None,
    batch: ExpertBatch | None,
    low_rank: LowRankBank | None = None,
) -> Tensor:
    """The experts' residuals with the bias, rounded once, and torch's product added onto them in its own sum.

    Shapes and semantics are those of `expert_linear`. A step without experts takes the same product, onto the bias
    alone: whether another token carries an expert does not choose how a token's own product is computed. No atomics
    and no split sums in the residuals: they are the same every time and in any batch.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    y = x.new_empty(x.shape[0], weight.shape[0])
    if batch is None:
        y.copy_(bias.expand_as(y)) if bias is not None else y.zero_()
    else:
        write_residuals(x, y, bias, bank, batch, low_rank)
    return y.addmm_(x, weight.t())


def write_residuals(
    x: Tensor,
    y: Tensor,
    bias: Tensor | None,
    bank: ExpertBank | None,
    batch: ExpertBatch,
    low_rank: LowRankBank | None = None,
) -> None:
    """Write the bias and the residuals of a step's tokens to `y`.

    Semantics: `y[t] = bias + sum_j gates[t, j] * E[slots[t, j]] @ x[t]`, summed in fp32 and rounded once.

    Args:
        x: `[T, K]`, of unit stride along K.
        y: `[T, N]` contiguous; its values are not read.
        bias: `[N]` or None.
        bank: sparse residuals of the layer, or None.
        batch: the plan of the T tokens.
        low_rank: low-rank residuals of the layer, or None.
    """
    tiles, launches, sparse = batch.tiles, batch.slots.shape[1], bank is not None
    shrunk = low_rank is not None and not shrinks_by_itself(low_rank, sparse, tiles.most)
    u = shrink_low_rank(x, low_rank, tiles) if low_rank is not None and shrunk else None
    # Sums that are left to another launch, or to the other part of this one, are not rounded.
    alone = launches == 1 and not (sparse and low_rank is not None)
    sums = y if alone else y.new_empty(y.shape, dtype=torch.float32)
    for column in range(launches):
        onto = Onto.of(y, sums, bias, column, launches)
        if low_rank is not None:
            launch_residual(x, onto, bank, low_rank, u, tiles, column)
        elif bank is not None:
            launch_sparse(x, onto, bank, tiles, column)
