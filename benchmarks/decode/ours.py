"""The engine, through its real loop: its own thread, streams on an event loop, one output a token."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.decode.cases import SAMPLING, Case
from benchmarks.decode.timing import Timing
from merge.bundle import Bundle
from serve.engine import AsyncEngine, EngineConfig, Output, Request, SamplingParams, build_engine

TOP = 20
"""Tokens of which log-probabilities are compared."""


class Ours:
    """An engine that has all experts of a bundle resident."""

    def __init__(self, engine: AsyncEngine, vocabulary: int, runner: asyncio.Runner) -> None:
        self._engine, self._vocabulary, self._runner = engine, vocabulary, runner
        self._numbers = count()

    def run(self, case: Case, tokens: int) -> Timing:
        """Serve a case's requests, with prompts never seen before."""
        return self._runner.run(self._run(case, tokens))

    async def _run(self, case: Case, tokens: int) -> Timing:
        number = next(self._numbers)
        asked: dict[str, Any] = dict(SAMPLING) if case.sampled else {"temperature": 0.0}
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, **asked)
        prompts = case.prompts(self._vocabulary, number)
        start = time.perf_counter()
        streams = [
            self._engine.generate(
                Request(f"{number}-{i}", tuple(prompt), params, () if expert is None else ((expert, 1.0),))
            )
            for i, (prompt, expert) in enumerate(zip(prompts, case.experts, strict=True))
        ]
        return Timing(await asyncio.gather(*(_arrivals(stream, start) for stream in streams)))

    @property
    def weight_bytes(self) -> int:
        """Memory of the backbone's weights."""
        return self._engine.stats().weight_bytes

    def top_logprobs(self, prompts: Sequence[Sequence[int]], experts: Sequence[str]) -> list[dict[int, float]]:
        """The `TOP` most likely next tokens of each prompt with their log-probabilities, all in one batch."""
        return self._runner.run(self._top_logprobs(prompts, experts))

    async def _top_logprobs(self, prompts: Sequence[Sequence[int]], experts: Sequence[str]) -> list[dict[int, float]]:
        number = next(self._numbers)
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, logprobs=TOP)
        streams = [
            self._engine.generate(Request(f"{number}-{i}", tuple(prompt), params, ((expert, 1.0),)))
            for i, (prompt, expert) in enumerate(zip(prompts, experts, strict=True))
        ]
        return await asyncio.gather(*map(_first, streams))


async def _first(stream: AsyncIterator[Output]) -> dict[int, float]:
    async for output in stream:
        if output.finish_reason == "error":
            raise RuntimeError(f"the engine failed: {output.error}")
        if output.tokens:
            return dict(output.tokens[0].top_logprobs or ())
    raise RuntimeError("the engine gave no token")


async def _arrivals(stream: AsyncIterator[Output], start: float) -> list[float]:
    """When each token came, in seconds since `start`."""
    times: list[float] = []
    async for output in stream:
        if output.finish_reason == "error":
            raise RuntimeError(f"the engine failed: {output.error}")
        times += [time.perf_counter() - start] * len(output.tokens)
    return times


@contextmanager
def running(
    bundle: Bundle,
    vocabulary: int,
    max_model_len: int,
    adapters: Mapping[str, Path] | None = None,
    quantization: str | None = None,
) -> Iterator[Ours]:
    """Start an engine with all experts and adapters resident; it is shut down when the block is left."""
    config = EngineConfig(
        max_model_len=max_model_len, max_num_seqs=8, enable_prefix_caching=False, quantization=quantization
    )
    engine = build_engine(bundle, config, adapters=adapters)
    with asyncio.Runner() as runner:
        ours = Ours(engine, vocabulary, runner)
        runner.run(_start(engine))
        try:
            for name in (*bundle.expert_names, *(adapters or ())):
                ours.run(Case("load", (name,), 4), 2)
            yield ours
        finally:
            runner.run(engine.shutdown(0.0))


async def _start(engine: AsyncEngine) -> None:
    engine.start()
