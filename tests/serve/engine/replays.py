"""Capturing without a GPU, and an engine whose captured steps are held against eager ones."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from merge.bundle import Bundle
from serve.engine import Engine, build
from serve.engine.graphs import DecodeGraphs, GraphLimits, bucket_of
from serve.engine.records import StepMode
from serve.engine.runner import Runner
from serve.engine.scheduler import Chunk
from serve.engine.static_step import Bucket
from serve.model import KvCache
from tests.serve.conftest import engine_of

LIMITS = GraphLimits(least_context=16, eager_steps=1)
# Sums of up to 80 products, in blocks that follow the numbers of rows and keys, through three layers.
TOLERANCE = 1e-4


class Again:
    """Captures by keeping the work: a replay does it once more, on the same tensors."""

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0

    def __call__(self, work: Callable[[], None]) -> "Replay":
        work()
        self.captured += 1
        return Replay(self, work)


@dataclass(frozen=True)
class Replay:
    of: Again
    work: Callable[[], None]

    def replay(self) -> None:
        self.of.replayed += 1
        self.work()


class SamePatching:
    """Repeats the decisions of the runner's patching for the same step, whose weights are unchanged."""

    def __init__(self) -> None:
        self.patched = False

    def settle(self, _: Sequence[Chunk]) -> bool:
        return self.patched


class ComparedRunner:
    """Computes every step eagerly as well, on a copy of the cache, and compares.

    Attributes:
        replayed: buckets of the steps that were replayed, in order.
        eager: how many were not.
    """

    def __init__(self, runner: Runner, graphs: DecodeGraphs, again: Again) -> None:
        self._runner, self._graphs, self._again, self._patching = runner, graphs, again, SamePatching()
        self._cache = _tensors(graphs._cache)
        copy = KvCache(*(tuple(map(_owned, side)) for side in (graphs._cache.keys, graphs._cache.values)))
        self._copy, self._size = _tensors(copy), runner._block_size
        self._eager = Runner(runner._decoder, copy, self._size, self._patching)  # type: ignore[arg-type]
        self.replayed: list[Bucket] = []
        self.eager = 0
        self.follows = False

    def run(self, chunks: Sequence[Chunk], rows: Sequence[int]) -> tuple[Tensor, StepMode]:
        before = [_owned(tensor) for tensor in self._cache]
        for copy, old in zip(self._copy, before, strict=True):
            copy.copy_(old)
        replays = self._again.replayed
        # What a replay does not write is seen, though the step before it may have left the right numbers.
        self._graphs._logits.fill_(torch.nan)
        logits, mode = self._runner.run(chunks, rows)
        self._patching.patched = mode == "patched"
        want, want_mode = self._eager.run(chunks, rows)
        assert mode == want_mode
        torch.testing.assert_close(logits, want, rtol=TOLERANCE, atol=TOLERANCE)
        kept = self._kept(chunks)
        for tensor, old, eager in zip(self._cache, before, self._copy, strict=True):
            torch.testing.assert_close(tensor[:-1], eager, rtol=TOLERANCE, atol=TOLERANCE)
            assert torch.equal(tensor[:-1].flatten(0, 1)[kept], old.flatten(0, 1)[kept])
        if self._again.replayed == replays:
            self.eager += 1
        else:
            decoding = [chunk for chunk in chunks if chunk.count == 1]
            bucket = bucket_of(decoding, mode == "patched", self._graphs._limits)
            assert bucket is not None
            self.replayed.append(bucket)
        return logits, mode

    def _kept(self, chunks: Sequence[Chunk]) -> Tensor:
        """Places of the cache without a token of the step, except those of the spare block."""
        kept = torch.ones(len(self._copy[0]) * self._size, dtype=torch.bool)
        for chunk in chunks:
            for position in range(chunk.sequence.computed, chunk.sequence.computed + chunk.count):
                kept[chunk.sequence.blocks[position // self._size] * self._size + position % self._size] = False
        return kept


@contextmanager
def without_compiled_kernels() -> Iterator[None]:
    """Everything takes the path in torch that a GPU takes too."""
    with (
        mock.patch.object(sys.modules["kernels.compiled.library"], "library", return_value=None),
        mock.patch("kernels.expert_linear.dispatch.library", return_value=None),
    ):
        yield


def capturing_engine(
    bundle: Bundle, again: Callable[[Callable[[], None]], Any], limits: GraphLimits = LIMITS, **settings: Any
) -> tuple[Engine, DecodeGraphs]:
    """An engine that captures its steps as on a GPU, on the CPU."""
    with mock.patch.object(build, "captures_steps", return_value=True):
        engine = engine_of(bundle, **{"max_num_seqs": 24, **settings}).engine
    runner = engine._runner
    cache = runner._cache.with_spare
    assert cache is not None
    runner._graphs = DecodeGraphs(runner._decoder, cache, runner._block_size, again, 64, limits)
    return engine, runner._graphs


def compared_engine(
    bundle: Bundle, limits: GraphLimits = LIMITS, **settings: Any
) -> tuple[Engine, ComparedRunner, Again]:
    """The same with every step compared."""
    again = Again()
    engine, graphs = capturing_engine(bundle, again, limits, **settings)
    compared = ComparedRunner(engine._runner, graphs, again)
    engine._runner = compared  # type: ignore[assignment]
    return engine, compared, again


def _tensors(cache: KvCache) -> tuple[Tensor, ...]:
    return cache.keys + cache.values


def _owned(tensor: Tensor) -> Tensor:
    """A copy of what the block pool hands out: all but the spare block."""
    return tensor[:-1].clone()
