"""What patching an expert into the weights costs and saves on this machine, timed before the first request."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch

from kernels.attention import AttentionBatch
from kernels.expert_linear import ExpertBatch
from serve.model import Decoder, ForwardBatch, KvCache, ResidualBanks

_SIZES = (1, 8, 64, 256)
"""Tokens of the timed steps: one request, a small and a full batch, and a piece of a prompt."""
_LOGITS = 64
"""Rows that get logits at most: all of a batch that decodes, few of a prompt's."""
_ROUNDS = 7
_FEWEST_ROUNDS = 2
_SECONDS_A_SIZE = 2.0
_BLOCK = 1


@dataclass(frozen=True)
class PatchCosts:
    """Times of patching and of steps.

    Attributes:
        switch_seconds: to patch an expert into the weights and to take it out again.
        tokens: sizes of the steps that were timed, ascending.
        saved: seconds that a step of each size takes less from patched weights than fused, at least 0.
    """

    switch_seconds: float
    tokens: tuple[int, ...]
    saved: tuple[float, ...]

    def saved_seconds(self, tokens: int) -> float:
        """Seconds that patched weights save in a step of this many tokens.

        Between the timed sizes on a line; above the largest in proportion to it.
        """
        if tokens > self.tokens[-1]:
            return self.saved[-1] * tokens / self.tokens[-1]
        return float(np.interp(tokens, self.tokens, self.saved))

    def __str__(self) -> str:
        saved = ", ".join(
            f"{1e3 * seconds:.2f} ms at {size}" for size, seconds in zip(self.tokens, self.saved, strict=True)
        )
        return f"to patch and unpatch takes {1e3 * self.switch_seconds:.1f} ms; saved a step: {saved} tokens"


def measure_patch_costs(decoder: Decoder, banks: ResidualBanks, slot: int, most_tokens: int) -> PatchCosts:
    """Time fused and plain steps in turn, and patching.

    A plain step does what a patched one does. Each size's saving is the median over rounds of the difference, so that
    a machine that grows slower meanwhile slows both.

    Args:
        decoder: whose weights are patched; they are restored to the last bit.
        banks: with an expert in `slot`.
        slot: which is timed.
        most_tokens: that a step may have.
    """
    sizes = [size for size in _SIZES if size <= most_tokens]
    # A separate cache, so that requests never find keys and values of the timed tokens.
    cache = KvCache.allocate(decoder.config, sizes[-1], _BLOCK, decoder.dtype, decoder.device)
    saved = []
    for size in sizes:
        plain, fused = _batch(decoder, size, None), _batch(decoder, size, slot)
        differences: list[float] = []
        started = time.perf_counter()
        for number in range(_ROUNDS + 1):
            with_expert = _timed(decoder.device, partial(_step, decoder, cache, fused))
            without = _timed(decoder.device, partial(_step, decoder, cache, plain))
            if number:  # the first one finds cold caches
                differences.append(with_expert - without)
            if len(differences) >= _FEWEST_ROUNDS and time.perf_counter() - started > _SECONDS_A_SIZE:
                break
        saved.append(max(0.0, median(differences)))

    def switch() -> None:
        banks.patch(slot)
        banks.unpatch()

    times = [_timed(decoder.device, switch) for _ in range(_ROUNDS)]
    return PatchCosts(median(times), tuple(sizes), tuple(saved))


def _step(decoder: Decoder, cache: KvCache, batch: ForwardBatch) -> None:
    with torch.inference_mode():
        hidden = decoder.forward(batch, cache)
        if len(hidden) <= _LOGITS:
            decoder.logits(hidden, batch.experts)


def _batch(decoder: Decoder, tokens: int, slot: int | None) -> ForwardBatch:
    """Sequences of one token, each in a separate block."""
    device, one = decoder.device, [1] * tokens
    zeros = torch.zeros(tokens, dtype=torch.int64, device=device)
    places = torch.arange(tokens, device=device)
    tables = places.to(torch.int32)[:, None]
    experts = None
    if slot is not None:
        slots = torch.full((tokens, 1), slot, dtype=torch.int32)
        experts = ExpertBatch.from_slots(slots, torch.ones(tokens, 1), device)
    return ForwardBatch(
        tokens=zeros,
        positions=zeros,
        slot_mapping=places,
        attention={window: AttentionBatch.build(tables, one, one, _BLOCK, window) for window in decoder.windows},
        experts=experts,
    )


def _timed(device: torch.device, work: Callable[[], None]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
