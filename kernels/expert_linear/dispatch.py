"""The one public function of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import on_gpu
from kernels.compiled import library
from kernels.expert_linear.bank import ExpertBank
from kernels.expert_linear.batch import ExpertBatch
from kernels.expert_linear.compiled import compiles, expert_linear_compiled, linear_then_residuals
from kernels.expert_linear.cpu import expert_linear_torch
from kernels.expert_linear.low_rank import LowRankBank
from kernels.expert_linear.packed_weight import PackedWeight
from kernels.expert_linear.product import linear

MOST_TOKENS = {torch.bfloat16: 64, torch.float32: 16}
"""Up to here the compiled product is faster than torch's (`python -m benchmarks.expert_linear`)."""

MOST_PACKED_TOKENS = 64
"""Up to here a GPU multiplies by packed integers; for more tokens it dequantises them first. Chosen, not
measured."""


def expert_linear(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    bank: ExpertBank | None = None,
    batch: ExpertBatch | None = None,
    low_rank: LowRankBank | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A linear layer in which each token may have different experts.

    Semantics: `y[t] = weight @ x[t] + bias + sum_j gates[t, j] * E[slots[t, j]] @ x[t]` with the experts
    `E = S + B diag(scale) A`, slot -1 adding nothing; accumulated in fp32, deterministic, and independent of the other
    tokens in what the experts add.

    Without banks, without a batch, or if no token of the batch has an expert, this is the plain product and no
    expert work is done. On a GPU a layer with banks is one product in every step, onto the bias or onto what the
    experts add.

    Args:
        x: `[T, K]`, contiguous or not.
        weight: `[N, K]`, the dtype of `x`; or packed in 8 or 4 bits. On a CPU a packed weight is multiplied by `x`
            rounded to 16 bits if the product is compiled, and on a GPU by `x` itself in a decode step. Otherwise it is
            multiplied out to the dtype of `x` first.
        bias: `[N]` or None.
        bank: the layer's sparse residuals S; on the device of `x`.
        batch: the plan of the step's T tokens, made once by `ExpertBatch.from_slots`.
        low_rank: the layer's low-rank residuals B diag(scale) A; on the device of `x`.
        out: memory that the result of many tokens may be in, as `linear` takes it; None: new memory.

    Returns:
        `[T, N]` in the dtype of `x`.

    Raises:
        ValueError: shapes, dtypes or slots do not fit together.
    """
    _check_product(x, weight, bias)
    residual = bank is not None or low_rank is not None
    batch = _checked_batch(x, weight, bank, batch, low_rank) if residual else None
    if on_gpu.runs_triton(x):
        # Triton is optional, and takes a second to import.
        if isinstance(weight, PackedWeight) and x.shape[0] <= MOST_PACKED_TOKENS:
            from kernels.expert_linear.packed_triton import expert_linear_packed_triton

            return expert_linear_packed_triton(x, weight, bias, bank, batch, low_rank)
        if residual:
            from kernels.expert_linear.triton import expert_linear_triton

            dense = weight.dequantised(x.dtype) if isinstance(weight, PackedWeight) else weight
            return expert_linear_triton(x, dense, bias, bank, batch, low_rank)
    if batch is None:
        bank = low_rank = None
    kernels = library() if x.device.type == "cpu" and compiles(x, bank, low_rank) else None
    if kernels is not None and x.shape[0] <= MOST_TOKENS[x.dtype]:
        return expert_linear_compiled(kernels, x, weight, bias, bank, batch, low_rank)
    if isinstance(weight, PackedWeight):
        weight = weight.dequantised(x.dtype)
    if batch is None:
        return linear(x, weight, bias, out)
    if kernels is not None:
        return linear_then_residuals(kernels, x, weight, bias, bank, batch, low_rank, out)
    return expert_linear_torch(x, weight, bias, bank, batch, low_rank)


def _checked_batch(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bank: ExpertBank | None,
    batch: ExpertBatch | None,
    low_rank: LowRankBank | None,
) -> ExpertBatch | None:
    """The plan if some token has an expert; otherwise None."""
    if batch is None or not batch.has_experts:
        return None
    _check_experts(x, weight, bank, batch)
    _check_experts(x, weight, low_rank, batch)
    return batch


def _check_product(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None) -> None:
    if x.dim() != 2 or len(weight.shape) != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x [T, K] and weight [N, K] do not fit: {list(x.shape)} and {list(weight.shape)}")
    if isinstance(weight, Tensor) and x.dtype != weight.dtype:
        raise ValueError(f"x is {x.dtype} but weight is {weight.dtype}; they must be the same")
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias must be [{weight.shape[0]}], not {list(bias.shape)}")


def _check_experts(
    x: Tensor, weight: Tensor | PackedWeight, bank: ExpertBank | LowRankBank | None, batch: ExpertBatch
) -> None:
    if bank is None:
        return
    if (bank.out_features, bank.in_features) != (weight.shape[0], weight.shape[1]):
        raise ValueError(
            f"the bank is for a weight [{bank.out_features}, {bank.in_features}], not {list(weight.shape)}"
        )
    if batch.tokens != x.shape[0]:
        raise ValueError(f"the batch plans {batch.tokens} tokens but x has {x.shape[0]}")
    if batch.highest_slot >= bank.slots:
        raise ValueError(f"slot {batch.highest_slot} is not in this bank of {bank.slots} slots")
