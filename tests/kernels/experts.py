"""Random layers and experts for the kernels' tests."""

import torch
from torch import Tensor

from kernels.expert_linear import ExpertBank, ExpertBatch, LowRankBank
from kernels.expert_linear.low_rank import Factors
from kernels.expert_linear.tiles import Tiles


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


def random_factors(out_features: int, in_features: int, rank: int, dtype: torch.dtype, seed: int = 0) -> Factors:
    """`a [r, K]`, `b [n, r]` and `scale [r]` of a residual of about a tenth of a weight's size."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, in_features, generator=generator) * in_features**-0.5
    b = torch.randn(out_features, rank, generator=generator)
    scale = 0.1 + 0.1 * torch.rand(rank, generator=generator)
    if dtype != torch.int8:
        return a.to(dtype), b.to(dtype), scale
    of_a, of_b = a.abs().amax(1) / 127, b.abs().amax(0) / 127
    return (
        (a / of_a[:, None]).round().to(dtype),
        (b / of_b).round().to(dtype),
        scale * of_a * of_b,
    )


def filled_low_rank(
    slots: int, segments: list[tuple[int, int]], in_features: int, dtype: torch.dtype, seed: int = 0
) -> LowRankBank:
    """Slots of other ranks from each other, some without a part of a segment."""
    bank = LowRankBank.allocate(slots, segments, in_features, dtype)
    for slot in range(slots):
        parts: list[Factors | None] = []
        for place, (rows, most) in enumerate(segments):
            rank = max(0, most - (slot + 2 * place) % 5)
            part = random_factors(rows, in_features, rank, dtype, seed + 100 * slot + place)
            parts.append(part if rank else None)
        bank.load(slot, parts)
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
    tiles = Tiles.over(torch.ones(Tiles.words(width, tokens), dtype=torch.int32), width, tokens)
    return ExpertBatch.over(slots, gates, group_slot, group_start, group_token, group_gate, tiles)
