"""The expert linear of every layer, captured, weights and experts cold, beside torch's product and the bytes."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.nn import functional as F

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.layers import RANK, filled_bank, filled_low_rank, layer, shapes
from benchmarks.gpu.report import Value, measure, rounded
from benchmarks.gpu.roofline import H200, linear_us, low_rank_us, product_us
from kernels.expert_linear import ExpertBatch, expert_linear

CASES = ((1, 1), (8, 1), (8, 8), (64, 1), (64, 8), (64, 64), (256, 64), (2048, 4))
"""Tokens of a step, and how many experts they share."""

CACHE = 250e6
"""Bytes that the copies of a layer have together: several times the second-level cache."""


def run(clock: Clock) -> None:
    """Tell every layer with every number of tokens and experts."""
    cases = CASES[:3] if not clock.on_gpu else CASES
    for tokens, experts in cases:
        for name, shape in shapes(not clock.on_gpu).items():
            for kind in ("int8", "low_rank") if (tokens, experts) == (8, 8) else ("int8",):
                key = f"{name}_T{tokens}_E{experts}" + ("_low_rank" if kind == "low_rank" else "")
                measure(key, partial(_one, clock, shape, tokens, experts, kind))
        if clock.on_gpu:
            torch.cuda.empty_cache()


def _one(clock: Clock, shape: tuple[int, int], tokens: int, experts: int, kind: str) -> Value:
    device, sparse = clock.device, kind == "int8"
    size = 2 * shape[0] * shape[1]
    copies = 2 if not clock.on_gpu else max(2, min(24, math.ceil(CACHE / size)))
    sets = []
    for number in range(copies):
        x, weight, _ = layer(tokens, shape, torch.bfloat16, device, number)
        bank = filled_bank(experts, shape, torch.int8, device, number) if sparse else None
        sets.append((x, weight, bank, None if sparse else filled_low_rank(experts, shape, device, number)))
    batch = ExpertBatch.from_slots([token % experts for token in range(tokens)], device=device)
    plain = clock.microseconds([partial(F.linear, x, weight) for x, weight, _, _ in sets])
    fused = clock.microseconds(
        [partial(expert_linear, x, weight, None, bank, batch, low) for x, weight, bank, low in sets]
    )
    found: dict[str, Value] = {"torch_product_us": rounded(plain), "with_experts_us": rounded(fused)}
    modelled = linear_us(H200, shape, tokens, experts, value_bytes=1)
    if not sparse:
        tiles = batch.tiles.most
        factors = min(low_rank_us(H200, shape, tiles, RANK, 2, shrinks) for shrinks in (True, False))
        modelled = product_us(H200, shape, tokens) + factors
    found["modelled_us"] = rounded(modelled)
    return found
