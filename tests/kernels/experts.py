"""Random layers and experts for the kernels' tests."""

import torch
from torch import Tensor

from kernels.expert_linear import ExpertBank, ExpertBatch


def random_rows(out_features: int, in_features: int, entries: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ascending distinct columns `[N, k]` and fp32 values of about a tenth of a weight's size."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(out_features, in_features, generator=generator).argsort(1)[:, :entries]
    return order.sort(1).values, torch.randn(out_features, entries, generator=generator) * 0.1


def filled_bank(
    slots: int, out_features: int, in_features: int, entries: int, dtype: torch.dtype, seed: int = 0
) -> ExpertBank:
    bank = ExpertBank.allocate(slots, out_features, in_features, entries, dtype)
    for slot in range(slots):
        index, value = random_rows(out_features, in_features, entries, seed + slot)
        if dtype == torch.int8:
            scale = value.abs().amax(1) / 127
            bank.load(slot, index, (value / scale[:, None]).round().to(torch.int8), scale)
        else:
            bank.load(slot, index, value)
    return bank


def random_layer(
    tokens: int, out_features: int, in_features: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """x `[T, K]`, weight `[N, K]` scaled so that outputs are of order 1, bias `[N]`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, in_features, generator=generator)
    weight = torch.randn(out_features, in_features, generator=generator) * in_features**-0.5
    bias = torch.randn(out_features, generator=generator)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def unfilled_plan(tokens: int, width: int) -> ExpertBatch:
    """A plan to be filled for up to `tokens` tokens of `width` experts, with what an earlier one may have left."""
    pairs = tokens * width
    sizes = ((tokens, width), (tokens, width), pairs, pairs + 1, pairs, pairs)
    types = (torch.int32, torch.float32, torch.int32, torch.int32, torch.int32, torch.float32)
    slots, gates, group_slot, group_start, group_token, group_gate = (
        torch.full(size if isinstance(size, tuple) else (size,), 1, dtype=dtype)
        for size, dtype in zip(sizes, types, strict=True)
    )
    return ExpertBatch.over(slots, gates, group_slot, group_start, group_token, group_gate)
