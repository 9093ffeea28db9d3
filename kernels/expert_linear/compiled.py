"""`expert_linear` on the CPU with the compiled kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.compiled import TYPES, Arguments, Library
from kernels.expert_linear.bank import ExpertBank
from kernels.expert_linear.batch import ExpertBatch
from kernels.expert_linear.low_rank import LowRankBank
from kernels.expert_linear.packed_weight import PackedWeight
from kernels.expert_linear.product import linear

ARGUMENTS = Arguments(
    "expert_linear",
    "type add_to_y tokens rows columns x x_stride weight weight_stride bias y bank batch low_rank quantised",
)
"""`LinearArguments` of csrc/kernels.h."""


def compiles(x: Tensor, bank: ExpertBank | None, low_rank: LowRankBank | None = None) -> bool:
    """Whether the kernels know these dtypes: bf16 or fp32 layers; bf16, fp32 or int8 experts of 16-bit columns."""
    if x.dtype not in {torch.bfloat16, torch.float32}:
        return False
    if low_rank is not None and low_rank.a.dtype not in TYPES:
        return False
    return bank is None or (bank.index.dtype == torch.uint16 and bank.value.dtype in TYPES)


def expert_linear_compiled(
    kernels: Library,
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None,
    bank: ExpertBank | None,
    batch: ExpertBatch | None,
    low_rank: LowRankBank | None = None,
) -> Tensor:
    """Product and residuals in one pass over the weights, rounded once.

    Shapes and semantics are those of `expert_linear`. With the same weights a token's result is the same to the last
    bit for any number of tokens and whatever experts the others carry.

    Args:
        kernels: the loaded library.
        x: `[T, K]` bf16 or fp32.
        weight: `[N, K]`, in the dtype of `x` or packed.
        bias: `[N]` or None.
        bank: sparse residuals, or None.
        batch: the plan of the T tokens; None for the plain product.
        low_rank: low-rank residuals, or None.
    """
    y = x.new_empty(x.shape[0], weight.shape[0])
    _call(kernels, x, weight, bias, bank, batch, low_rank, y, add=False)
    return y


def linear_then_residuals(
    kernels: Library,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bank: ExpertBank | None,
    batch: ExpertBatch,
    low_rank: LowRankBank | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The product by torch, then the residuals added to it. For many tokens, because torch's product is then faster.

    Shapes and semantics are those of `expert_linear`; in bf16 the product and each part of an expert that is added
    are rounded.
    """
    y = linear(x, weight, bias, out)
    _call(kernels, x, weight, None, bank, batch, low_rank, y, add=True)
    return y


def _call(
    kernels: Library,
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None,
    bank: ExpertBank | None,
    batch: ExpertBatch | None,
    low_rank: LowRankBank | None,
    y: Tensor,
    add: bool,
) -> None:
    tokens, columns = x.shape
    if not tokens:
        return
    if x.stride(1) != 1:
        x = x.contiguous()
    packed = weight if isinstance(weight, PackedWeight) else None
    if isinstance(weight, Tensor) and weight.stride(1) != 1:
        weight = weight.contiguous()
    kernels.call(
        ARGUMENTS,
        type=TYPES[x.dtype],
        add_to_y=add,
        tokens=tokens,
        rows=weight.shape[0],
        columns=columns,
        x=x.data_ptr(),
        x_stride=x.stride(0),
        weight=weight.data_ptr() if isinstance(weight, Tensor) else 0,
        weight_stride=weight.stride(0) if isinstance(weight, Tensor) else columns,
        bias=0 if bias is None else bias.data_ptr(),
        y=y.data_ptr(),
        bank=0 if bank is None else bank.view_address,
        batch=0 if batch is None else batch.view_address,
        low_rank=0 if low_rank is None else low_rank.view_address,
        quantised=0 if packed is None else packed.view_address,
    )
