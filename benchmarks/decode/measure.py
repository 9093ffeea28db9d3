"""Rounds in which everything is measured once, in turn, so that what slows the machine slows all alike."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.decode import peers
from benchmarks.decode.cases import SAMPLING, Case, decode_cases, sampled_cases
from benchmarks.decode.logits import logprob_errors
from benchmarks.decode.model import Kind, Shape, write_loras, write_model
from benchmarks.decode.ours import running
from benchmarks.decode.patching import patching
from benchmarks.decode.runs import Runs
from benchmarks.decode.timing import Timing
from kernels.compiled import ISAS, library
from merge.experts.storage import Storage
from serve.model import Decoder, load_model

STEPS = 32
TURNS = 12
FLOOR = "floor"
OWN = "overtone"
EXPERTS = 8
DENSITY = 0.01
RANK = 16
PREFILL = 512
CONTEXTS = (128, 1024, 2048)

Say = Callable[[str], None]


def measure(
    folder: Path,
    shape: Shape,
    context: int | None,
    names: list[str],
    rounds: int,
    say: Say,
    storage: Storage = "int8",
    kind: Kind = "sparse",
    sampling: bool = False,
) -> dict[str, Any]:
    """Run the benchmark: the document that `--json` prints.

    Args:
        folder: for the model and the adapters; the caller removes it.
        shape: of the model.
        context: longest context; None: prompts of 32 tokens, with prefill and overhead measured, too.
        names: peers to run beside the engine.
        rounds: how often everything is measured.
        say: receives lines about the progress.
        storage: of sparse experts' values.
        kind: of the experts; with LoRAs the peers serve the same files.
        sampling: also measure steps whose tokens are sampled, on the engine alone; not with a `context`.
    """
    say("writing the model and its experts")
    bundle = write_model(folder / "bundle", shape, EXPERTS, DENSITY, storage, kind)
    cases = decode_cases(32) if context is None else _context_cases(context)
    if sampling and context is None:
        cases += sampled_cases(32)
    prefill = _prefill_cases() if context is None else []
    length = max(case.prompt for case in cases + prefill) + STEPS + 1
    loras = folder / "loras"
    if names or kind == "lora16":
        write_loras(loras, bundle, [f"e{i}" for i in range(EXPERTS)], RANK)
    adapters = _adapters(loras) if kind == "lora16" else {}
    logits: dict[str, Any] = {}
    with (
        running(bundle, shape.vocabulary, length, adapters) as ours,
        peers.running(names, bundle.backbone_dir, loras, shape.vocabulary, length, say) as others,
    ):
        decoder = load_model(bundle.backbone_dir)
        runs = Runs(say)
        runs.add({OWN: ours.run})
        runs.join(others)
        rows = _Rows(runs, _reader(decoder))
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            rows.measure(number, cases, prefill)
        if context is None:
            say("the engine's own cases in turn")
            rows.alternate(cases)
        if adapters:
            logits = {"logprob_errors": logprob_errors(ours, bundle.backbone_dir, adapters, shape.vocabulary, say)}
    report = rows.context_report() if context is not None else rows.report()
    if context is None:
        narrow = write_model(folder / "narrow", shape.narrow(), EXPERTS, DENSITY, storage, kind)
        if adapters:
            write_loras(folder / "narrow-loras", narrow, list(adapters), RANK)
            adapters = _adapters(folder / "narrow-loras")
        with running(narrow, shape.vocabulary, length, adapters) as ours:
            found = {
                case.name: statistics.median(ours.run(case, STEPS + 1).step_ms for _ in range(9)) for case in cases
            }
        report |= {"python_overhead_ms": _round(found["backbone/1"]), "overhead_ms": _rounded(found)}
        if kind == "sparse":
            report |= {"patching": patching(bundle, decoder)}
    kernels = library()
    return {
        "parameters": bundle.manifest.backbone_bytes // 2,
        "experts": kind,
        **({"density": DENSITY, "storage": storage} if kind == "sparse" else {}),
        "dtype": "bfloat16",
        "vocabulary": shape.vocabulary,
        "threads": torch.get_num_threads(),
        "kernels": ISAS[kernels.isa] if kernels else "torch",
        "rounds": rounds,
        **report,
        **logits,
    }


def _adapters(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir())}


class _Rows:
    """Figures of all rounds."""

    def __init__(self, runs: Runs, read: Callable[[], float]) -> None:
        self._runs, self._read = runs, read
        self._floors: list[float] = []
        self._turns: dict[str, list[float]] = {}
        self._timings: dict[str, dict[str, list[Timing]]] = {name: {} for name in runs.names}
        self._prefill: dict[str, dict[str, list[float]]] = {name: {} for name in runs.names}

    def measure(self, number: int, cases: list[Case], prefill: list[Case]) -> None:
        """One round: every case on the engine and on every peer that can run it.

        Who begins changes from round to round: memory's speed on a shared machine drifts within a case, too.
        """
        for case in cases:
            self._floors.append(self._read())
            for name in self._able(number, case):
                if timing := self._runs.run(name, case, STEPS + 1):
                    self._timings[name].setdefault(case.name, []).append(timing)
        for case in prefill:
            tokens = case.prompt * len(case.experts)
            for name in self._able(number, case):
                if timing := self._runs.run(name, case, 1):
                    self._prefill[name].setdefault(case.name, []).append(1e3 * tokens / timing.first_ms)

    def alternate(self, cases: list[Case]) -> None:
        """Reading the weights and the engine's cases, one after the other and again: what ratios are taken from.

        Within a round a case and the one that it is compared with are up to a minute apart, in which memory's speed
        changes by more than an expert costs.
        """
        for number in range(TURNS):
            self._turns.setdefault(FLOOR, []).append(self._read())
            for case in cases if number % 2 else reversed(cases):
                if timing := self._runs.run(OWN, case, STEPS + 1):
                    self._turns.setdefault(case.name, []).append(timing.step_ms)

    def _able(self, number: int, case: Case) -> list[str]:
        able = [name for name in self._runs.names if peers.takes(name, case)]
        first = number % len(able)
        return able[first:] + able[:first]

    def report(self) -> dict[str, Any]:
        """Steps after short prompts, time to the first token, and prefill."""
        first = statistics.median(t.first_ms for t in self._timings[OWN]["backbone/1"])
        return {
            "floor_ms": _round(statistics.median(self._floors)),
            "backbone_ms": {n: self._step(f"backbone/{n}") for n in ("1", "8")},
            "backbone_vs_floor": {n: self._ratio(f"backbone/{n}", FLOOR) for n in ("1", "8")},
            "one_expert": {n: self._ratio(f"one_expert/{n}", f"backbone/{n}") for n in ("1", "8")},
            "distinct8": {"8": self._ratio("distinct8/8", "backbone/8")},
            **self._sampled(),
            "turns_ms": {name: _round(statistics.median(found)) for name, found in self._turns.items()},
            "ttft_ms": _round(first),
            "prefill_tokens_per_s": {
                name: {case: round(statistics.median(found)) for case, found in self._prefill[name].items()}
                for name in self._runs.names
            },
            **self._against_peers(),
            "steps_ms": self._steps(),
        }

    def _sampled(self) -> dict[str, Any]:
        """Steps with sampled tokens over greedy ones, and the milliseconds between them, if they were measured."""
        if "sampled/1" not in self._turns:
            return {}
        pairs = {
            n: list(zip(self._turns[f"sampled/{n}"], self._turns[f"backbone/{n}"], strict=True)) for n in ("1", "8")
        }
        return {
            "sampling": {
                "settings": dict(SAMPLING),
                "ratio": {n: self._ratio(f"sampled/{n}", f"backbone/{n}") for n in pairs},
                "added_ms": {n: _round(statistics.median(a - b for a, b in found)) for n, found in pairs.items()},
            }
        }

    def context_report(self) -> dict[str, Any]:
        """Steps at every context."""
        floor = _round(statistics.median(self._floors))
        return {"floor_ms": floor, **self._against_peers(), "steps_ms": self._steps()}

    def _against_peers(self) -> dict[str, Any]:
        """Each peer's step by the engine's of the same round, the median of all rounds."""
        own = self._timings[OWN]
        ratios = {
            peer: {
                case: round(statistics.median(a.step_ms / b.step_ms for a, b in zip(found, own[case], strict=True)), 2)
                for case, found in cases.items()
            }
            for peer, cases in self._measured()
            if peer != OWN
        }
        return ({"peer_ratio": ratios} if ratios else {}) | self._runs.report()

    def _measured(self) -> list[tuple[str, dict[str, list[Timing]]]]:
        """Timings of all that have run to the end."""
        return [(name, self._timings[name]) for name in self._runs.names]

    def _steps(self) -> dict[str, dict[str, dict[str, float]]]:
        """Median times of a step: median over the rounds, and the rounds' extremes."""
        return {
            name: {case: _spread([timing.step_ms for timing in timings]) for case, timings in cases.items()}
            for name, cases in self._measured()
        }

    def _step(self, case: str) -> float:
        return _round(statistics.median(t.step_ms for t in self._timings[OWN][case]))

    def _ratio(self, case: str, to: str) -> float:
        """Median of the ratios of neighbouring turns."""
        return round(statistics.median(a / b for a, b in zip(self._turns[case], self._turns[to], strict=True)), 3)


def _context_cases(longest: int) -> list[Case]:
    contexts = sorted({*(c for c in CONTEXTS if c < longest), longest})
    eight = tuple(f"e{i}" for i in range(EXPERTS))
    return [
        case
        for n in contexts
        for case in (
            Case(f"backbone/1@{n}", (None,), n),
            Case(f"backbone/8@{n}", (None,) * 8, n),
            Case(f"distinct8/8@{n}", eight, n),
        )
    ]


def _prefill_cases() -> list[Case]:
    return [
        Case("backbone", (None,) * 4, PREFILL),
        Case("one_expert", ("e0",) * 4, PREFILL),
        Case("mixed", tuple(f"e{i}" for i in range(4)), PREFILL),
    ]


def _reader(decoder: Decoder) -> Callable[[], float]:
    """Milliseconds that reading all weights takes, streaming, with all threads, from memory held as the engine's is.

    The median of as many readings as a case has steps, so that it is as steady as what it is compared with.
    """
    memory = next(iter(decoder.placements.values())).part.tensor.untyped_storage()  # of all of them: hold_together
    words = torch.empty(0, dtype=torch.int64).set_(memory, 0, (memory.nbytes() // 8,), (1,))

    def read_once() -> float:
        start = time.perf_counter()
        words.sum()
        return (time.perf_counter() - start) * 1e3

    return lambda: statistics.median(read_once() for _ in range(STEPS))


def _spread(values: list[float]) -> dict[str, float]:
    return _rounded({"median": statistics.median(values), "min": min(values), "max": max(values)})


def _round(value: float) -> float:
    return round(value, 3)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: _round(value) for key, value in values.items()}
