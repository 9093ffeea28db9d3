"""Every path of the expert linear on the layers of real models, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.layers import filled_bank, filled_low_rank, layer, relative, shapes
from benchmarks.gpu.report import Value, bounded, measure, rounded
from kernels.expert_linear import ExpertBatch, expert_linear
from kernels.expert_linear.reference import expert_linear_reference
from kernels.patch import patch, unpatch

BOUND = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 5e-6}
"""Limit of the relative error: half a unit in the last place twice, for the residual and for the sum."""

SLOTS = 8


def run(clock: Clock) -> None:
    """Tell the errors, and what does not depend on other tokens."""
    smoke, bf16 = not clock.on_gpu, torch.bfloat16
    layers = shapes(smoke)
    small = layers["small_qkv" if smoke else "qwen_o"]
    for name, shape in layers.items():
        bounded(f"error_{name}_T8", BOUND[bf16], partial(_error, clock, shape, _distinct(8), bf16, bf16))
    for tokens in (1, 17) if smoke else (1, 16, 17, 64, 65, 200, 2048):
        bounded(f"error_T{tokens}", BOUND[bf16], partial(_error, clock, small, _distinct(tokens), bf16, torch.int8))
    mixed = [[token % 9 - 1, token * 3 % 9 - 1] for token in range(33)]
    bounded("error_two_experts", BOUND[bf16], partial(_error, clock, small, mixed, bf16, bf16))
    bounded("error_low_rank", BOUND[bf16], partial(_error, clock, small, mixed, bf16, bf16, True))
    bounded("error_low_rank_of_many", BOUND[bf16], partial(_error, clock, small, mixed * 9, bf16, bf16, True))
    for dtype in (torch.float16, torch.float32):
        bounded(f"error_{str(dtype)[6:]}", BOUND[dtype], partial(_error, clock, small, _distinct(8), dtype, dtype))
    bounded("error_odd_shape", BOUND[bf16], partial(_error, clock, (37, 67), _distinct(5), bf16, bf16))
    for kind, parts in (("", (True, False)), ("_low_rank", (False, True)), ("_both", (True, True))):
        measure(f"same_bits_alone_and_together{kind}", partial(_company, clock, small, *parts))
    measure("same_product_beside_an_expert", partial(_neighbour, clock, small))
    measure("patch_and_unpatch", partial(_patching, clock, small))


def _distinct(tokens: int) -> list[list[int]]:
    return [[token % SLOTS] for token in range(tokens)]


def _error(
    clock: Clock,
    shape: tuple[int, int],
    slots: Sequence[Sequence[int]],
    dtype: torch.dtype,
    values: torch.dtype,
    with_low_rank: bool = False,
) -> float:
    device = clock.device
    x, weight, bias = layer(len(slots), shape, dtype, device)
    bank = filled_bank(SLOTS, shape, values, device)
    low_rank = filled_low_rank(SLOTS, shape, device) if with_low_rank else None
    table = torch.tensor(slots)
    batch = ExpertBatch.from_slots(table, torch.rand(table.shape) + 0.5, device)
    # Memory that the result probably gets: what is not written shows.
    torch.full((len(slots), shape[0]), torch.nan, dtype=dtype, device=device)
    found = expert_linear(x, weight, bias, bank, batch, low_rank)
    return rounded(relative(found, expert_linear_reference(x.double(), weight, bias, bank, batch, low_rank)))


def _company(clock: Clock, shape: tuple[int, int], sparse: bool, factors: bool) -> bool:
    """What experts add to a token does not depend on the other tokens: without weights, to the last bit."""
    # On a card more than may shrink in the launch that expands, as a token alone does.
    many = 600 if clock.on_gpu else 40
    x, weight, _ = layer(many, shape, torch.bfloat16, clock.device)
    bank = filled_bank(SLOTS, shape, torch.bfloat16, clock.device) if sparse else None
    low_rank = filled_low_rank(SLOTS, shape, clock.device) if factors else None
    slots = [token * 7 % 9 - 1 for token in range(many)]
    batch = ExpertBatch.from_slots(slots, device=clock.device)
    together = expert_linear(x, weight.zero_(), None, bank, batch, low_rank)
    for token in range(0, many, many // 14):
        own = ExpertBatch.from_slots([slots[token]], device=clock.device)
        if not torch.equal(together[token], expert_linear(x[token : token + 1], weight, None, bank, own, low_rank)[0]):
            raise ArithmeticError(f"token {token} gets other bits alone than together")
    return True


def _neighbour(clock: Clock, shape: tuple[int, int]) -> bool:
    """A token without an expert gets the same bits whether another token of the step has one or not."""
    x, weight, bias = layer(40, shape, torch.bfloat16, clock.device)
    bank = filled_bank(SLOTS, shape, torch.bfloat16, clock.device)
    plans = [ExpertBatch.from_slots([-1] * 39 + [last], device=clock.device) for last in (-1, 3)]
    without, beside = (expert_linear(x, weight, bias, bank, plan) for plan in plans)
    if not torch.equal(without[:39], beside[:39]):
        raise ArithmeticError("a token without an expert gets other bits beside one that has one")
    return True


def _patching(clock: Clock, shape: tuple[int, int]) -> Value:
    _, weight, _ = layer(1, shape, torch.bfloat16, clock.device)
    bank, before = filled_bank(2, shape, torch.int8, clock.device), weight.clone()
    unpatch(weight, patch(weight, *bank.rows(1)))
    if not torch.equal(before, weight):
        raise ArithmeticError("the weights are not restored")
    return {"ms": rounded(clock.seconds(lambda: unpatch(weight, patch(weight, *bank.rows(1)))) * 1e3)}
