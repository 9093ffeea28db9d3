"""The engine on a random model with eight experts: captured steps beside eager ones, drawing, loads while decoding."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.decode.model import Shape, write_model
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.report import Value, measure, rounded
from merge.bundle import Bundle
from serve.engine import (
    AsyncEngine,
    EngineConfig,
    Request,
    SamplingParams,
    SilentObserver,
    StepRecord,
    TokenOutput,
    build_engine,
)
from serve.experts.store import Tier

EIGHT = [f"e{number}" for number in range(8)]
CASES: dict[str, list[str | None]] = {
    "plain1": [None],
    "one1": ["e0"],
    "plain8": [None] * 8,
    "one8": ["e0"] * 8,
    "distinct8": [*EIGHT],
    "mixed8": [*EIGHT[:4], None, None, None, None],
    "plain64": [None] * 64,
    "eight_of_64": [*EIGHT] * 8,
    "eight_of_128": [*EIGHT] * 16,
}
PATIENCE = 60.0
"""Seconds after which an engine that does not finish its requests has failed."""


class Seen(SilentObserver):
    """An engine's statistics of its steps and its loads."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.loads: list[tuple[Tier, float]] = []

    def on_step(self, record: StepRecord) -> None:
        """Keep it."""
        self.steps.append(record)

    def on_expert_load(self, name: str, seconds: float, nbytes: int, tier: Tier) -> None:  # noqa: ARG002
        """Keep its tier and seconds."""
        self.loads.append((tier, seconds))


class Warnings(logging.Handler):
    """Keeps what the engine warns of: that steps are not captured, above all."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines.append(record.getMessage()[:300])


class Bench:
    """A bundle, and engines on it."""

    def __init__(self, clock: Clock, folder: Path) -> None:
        self.clock = clock
        self.shape = Shape(vocabulary=151_936) if clock.on_gpu else Shape(64, 96, 2, 4, 2, 200, 512)
        self.bundle: Bundle = write_model(folder / "bundle", self.shape, 8, 0.01, "int8")
        self.tokens = 48 if clock.on_gpu else 6
        self.cases = CASES if clock.on_gpu else {name: CASES[name] for name in ("plain1", "distinct8", "mixed8")}

    def engine(self, **settings: Any) -> tuple[AsyncEngine, Seen]:
        """An engine whose loop is not started."""
        usual = {
            "device": self.clock.device.type,
            "dtype": "bfloat16",
            "max_model_len": 512,
            "max_num_seqs": 128,
            "kv_cache_bytes": 4 << 30 if self.clock.on_gpu else 1 << 26,
            "enable_prefix_caching": False,
        }
        seen = Seen()
        made = build_engine(self.bundle, EngineConfig(**{**usual, **settings}), seen)
        made.engine.experts.preload()
        made.engine.warm_up()
        return made, seen

    def run(self, made: AsyncEngine, experts: list[str | None], **params: Any) -> list[list[TokenOutput]]:
        """The tokens of a request for each of `experts`."""
        settings = {"max_tokens": self.tokens, "temperature": 0.0, "ignore_eos": True, **params}
        for number, expert in enumerate(experts):
            generator = torch.Generator().manual_seed(number)
            prompt = tuple(torch.randint(0, self.shape.vocabulary, (24 + number % 9,), generator=generator).tolist())
            chosen = () if expert is None else ((expert, 1.0),)
            made.engine.add(Request(str(number), prompt, SamplingParams(**settings), chosen))
        outputs: dict[str, list[TokenOutput]] = {}
        until = time.monotonic() + PATIENCE
        while made.engine.has_work:
            if time.monotonic() > until:
                raise TimeoutError("the engine does not finish its requests")
            for output in made.engine.step():
                if output.error:
                    raise RuntimeError(output.error[:200])
                outputs.setdefault(output.request_id, []).extend(output.tokens)
            if made.engine.idle:
                time.sleep(0.001)
        return [outputs[str(number)] for number in range(len(experts))]


def run(clock: Clock) -> None:
    """Tell steps' times, agreement and loads."""
    listening = Warnings()
    logger = logging.getLogger("overtone")
    logger.addHandler(listening)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(clock, Path(folder))
        texts = {
            "captured": _timed(bench, "captured", {}),
            "eager": _timed(bench, "eager", {"enforce_eager": True}),
        }
        measure("tokens_equal_in_bfloat16", partial(_agreement, texts["captured"], texts["eager"]))
        measure("captured_is_eager_in_float32", partial(_exact, bench))
        measure("loads_while_decoding", partial(_loads, bench))
        measure("memory", partial(_memory, bench))
    logger.removeHandler(listening)
    measure("warnings", lambda: _no_warnings(listening.lines))


def _timed(bench: Bench, mode: str, settings: dict[str, Any]) -> dict[str, list[list[TokenOutput]]]:
    made: AsyncEngine | None = None
    seen = Seen()
    texts: dict[str, list[list[TokenOutput]]] = {}

    def build() -> Value:
        nonlocal made, seen
        start = time.perf_counter()
        made, seen = bench.engine(**settings)
        return {"seconds": rounded(time.perf_counter() - start)}

    def case(name: str, params: dict[str, Any]) -> Value:
        if made is None:
            raise RuntimeError("the engine was not built")
        first = len(seen.steps)
        texts[name] = bench.run(made, bench.cases[name], **params)
        decoding = [one.seconds * 1e3 for one in seen.steps[first:] if not one.prefill_tokens]
        steady = decoding[len(decoding) // 2 :]
        return {"ms": rounded(statistics.median(steady)), "slowest_ms": rounded(max(decoding))}

    measure(f"{mode}_build", build)
    for name in bench.cases:
        measure(f"{mode}_{name}", partial(case, name, {}))
    largest = list(bench.cases)[-1]
    others: dict[str, dict[str, Any]] = {
        "sampled": {"temperature": 1.0, "seed": 1},
        "top_p": {"temperature": 1.0, "top_p": 0.95, "seed": 1},
        "penalties": {"repetition_penalty": 1.1},
        # Log-probabilities are read by the host before the next step: the same steps, none of them launched ahead.
        "waiting": {"logprobs": 0},
    }
    for name, params in others.items():
        greedy = texts.get(largest)
        measure(f"{mode}_{name}", partial(case, largest, params))
        if greedy is not None:
            waited = texts[largest]
            texts[largest] = greedy
    if greedy is not None:
        measure(f"{mode}_ahead_is_waiting", partial(_same, greedy, waited))
    if made is not None:
        made.engine.experts.close()
    return texts


def _same(ahead: list[list[TokenOutput]], waited: list[list[TokenOutput]]) -> bool:
    """Steps that are launched ahead draw the tokens of those that wait for the host."""
    for one, other in zip(ahead, waited, strict=True):
        if [output.token for output in one] != [output.token for output in other]:
            raise ArithmeticError("a step that was launched ahead drew another token")
    return True


def _agreement(captured: dict[str, list[list[TokenOutput]]], eager: dict[str, list[list[TokenOutput]]]) -> Value:
    """Share of tokens that captured and eager steps have in common; near-ties may part them."""
    found: dict[str, Value] = {}
    for name, texts in captured.items():
        pairs = [
            left.token == right.token
            for ours, theirs in zip(texts, eager[name], strict=True)
            for left, right in zip(ours, theirs, strict=True)
        ]
        found[name] = rounded(sum(pairs) / len(pairs))
    return found


def _exact(bench: Bench) -> Value:
    """In float32 captured and eager steps draw the same tokens with the same log-probabilities, except for rounding."""
    both = []
    for eager in (False, True):
        made, _ = bench.engine(dtype="float32", enforce_eager=eager)
        both.append(bench.run(made, list(EIGHT), logprobs=0))
        made.engine.experts.close()
    pairs = [pair for ours, theirs in zip(*both, strict=True) for pair in zip(ours, theirs, strict=True)]
    same = sum(left.token == right.token for left, right in pairs) / len(pairs)
    furthest = max(
        abs((left.logprob or 0.0) - (right.logprob or 0.0)) for left, right in pairs if left.token == right.token
    )
    if same < 0.99 or furthest > 1e-3:
        raise ArithmeticError(f"{same:.3f} of the tokens are equal, and log-probabilities differ by {furthest:.2g}")
    return {"tokens_equal": rounded(same), "furthest_logprob": rounded(furthest)}


def _loads(bench: Bench) -> Value:
    """Four sequences decode; meanwhile four other experts are loaded into the fifth slot, one after the other."""
    made, seen = bench.engine(max_expert_slots=5, max_expert_host_bytes=1 << 32)
    greedy: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
    for number in range(4):
        params = SamplingParams(max_tokens=400, **greedy)
        made.engine.add(Request(f"long-{number}", (1, 2, 3, 4 + number), params, ((EIGHT[number], 1.0),)))
    until = time.monotonic() + PATIENCE
    while made.engine.stats().running < 4 and time.monotonic() < until:
        made.engine.step()
    for _ in range(60 if bench.clock.on_gpu else 4):
        made.engine.step()
    quiet = [one.seconds * 1e3 for one in seen.steps[len(seen.steps) // 2 :]]
    first, waits = len(seen.steps), []
    for number in range(4, 8):
        params = SamplingParams(max_tokens=2, **greedy)
        made.engine.add(Request(f"new-{number}", (5, 6, 7), params, ((EIGHT[number], 1.0),)))
        began, done = time.monotonic(), False
        while not done and time.monotonic() < until:
            done = any(o.request_id == f"new-{number}" and o.finish_reason for o in made.engine.step())
        waits.append(rounded((time.monotonic() - began) * 1e3))
    busy = [one.seconds * 1e3 for one in seen.steps[first:]]
    for number in range(4):
        made.engine.abort(f"long-{number}")
    made.engine.experts.close()
    return {
        "step_ms": rounded(statistics.median(quiet)),
        "step_ms_while_loading": rounded(statistics.median(busy)),
        "slowest_ms_while_loading": rounded(max(busy)),
        "request_ms": waits,
        "to_device_ms": [rounded(seconds * 1e3) for tier, seconds in seen.loads if tier == "device"][-4:],
    }


def _memory(bench: Bench) -> Value:
    """What the engine takes of a card by default."""
    if not bench.clock.on_gpu:
        return None
    made, _ = bench.engine(kv_cache_bytes=None, max_model_len=4096)
    bench.run(made, [*EIGHT] * 8)
    free, total = torch.cuda.mem_get_info(bench.clock.device)
    made.engine.experts.close()
    return {"used_gb": rounded((total - free) / 1e9), "total_gb": rounded(total / 1e9)}


def _no_warnings(lines: list[str]) -> Value:
    if lines:
        raise RuntimeError("; ".join(lines[:4]))
    return None
