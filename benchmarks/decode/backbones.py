"""Steps over a backbone of 8 or 4 bits beside the same backbone in bfloat16, and beside llama.cpp's formats."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.decode import peers
from benchmarks.decode.cases import Case
from benchmarks.decode.model import Kind, Shape, write_loras, write_model
from benchmarks.decode.ours import running
from benchmarks.decode.runs import Runs
from kernels.compiled import ISAS, library
from merge.bundle.quantised import SCHEMES

STEPS = 32
EXPERTS = 8
DENSITY = 0.01
PLAIN = "bf16"
CASES = (
    Case("1", (None,), 32),
    Case("8", (None,) * 8, 32),
    Case("distinct8", tuple(f"e{i}" for i in range(EXPERTS)), 32),
)
PREFILL = Case("prefill", (None,) * 4, 512)

Figures = dict[str, dict[str, list[float]]]
"""Figures of each round, by engine and by case."""


def measure_backbones(
    folder: Path,
    shape: Shape,
    storage: str,
    names: Sequence[str],
    rounds: int,
    say: Callable[[str], None],
    kind: Kind = "sparse",
) -> dict[str, Any]:
    """Run the benchmark: the document that `--backbone STORAGE --json` prints.

    The engines hold the same bundle, one as it is stored and one rounded at load. Each round runs every case on all of
    them in turn, in another order than the round before. Ratios are medians of the rounds' own.

    Args:
        folder: for the model; the caller removes it.
        shape: of the model.
        storage: int8 or int4.
        names: peers to run beside them.
        rounds: how often everything is measured.
        say: receives lines about the progress.
        kind: of the bundle's experts, sparse or low-rank.

    A peer that fails is left out: the report has its error under `left_out`.

    Raises:
        ValueError: another storage, or LoRA adapters as experts.
    """
    if storage not in SCHEMES:
        raise ValueError(f"storage is {storage!r}; it must be one of {', '.join(SCHEMES)}")
    if kind == "lora16":
        raise ValueError("experts are those of a bundle here: sparse or low_rank8_int8, not lora16")
    say("writing the model and its experts")
    bundle = write_model(folder / "bundle", shape, EXPERTS, DENSITY, "int8", kind)
    loras = folder / "loras"
    if names:
        write_loras(loras, bundle, [], 16)
    length = max(case.prompt for case in (*CASES, PREFILL)) + STEPS + 1
    with ExitStack() as stack:
        runs = Runs(say)
        held: dict[str, int] = {}
        for name, quantization in ((PLAIN, None), (storage, storage)):
            ours = stack.enter_context(running(bundle, shape.vocabulary, length, quantization=quantization))
            runs.add({name: ours.run})
            held[name] = ours.weight_bytes
        others = peers.running(list(names), bundle.backbone_dir, loras, shape.vocabulary, length, say)
        runs.join(stack.enter_context(others))
        steps, prompts = _rounds(runs, rounds, say)
    own = (PLAIN, storage)
    kernels = library()
    return {
        "parameters": bundle.manifest.backbone_bytes // 2,
        "threads": torch.get_num_threads(),
        "kernels": ISAS[kernels.isa] if kernels else "torch",
        "rounds": rounds,
        "storage": storage,
        "experts": kind,
        "weight_bytes": held,
        "backbone_ms": {name: {case: _median(steps[name][case]) for case in ("1", "8")} for name in own},
        "distinct8": {name: _median(steps[name]["distinct8"]) for name in own},
        "ratio": {
            **{case: _ratio(steps[storage][case], steps[PLAIN][case]) for case in ("1", "8")},
            "distinct8": _ratio(steps[storage]["distinct8"], steps[storage]["8"]),
        },
        "peers": {
            name: {
                case: {"ms": _median(found), "over_ours": _ratio(found, steps[storage][case])}
                for case, found in steps[name].items()
            }
            for name in runs.names
            if name not in own
        },
        **runs.report(),
        "prefill_tokens_per_s": {name: round(statistics.median(prompts[name])) for name in runs.names},
    }


def _rounds(runs: Runs, rounds: int, say: Callable[[str], None]) -> tuple[Figures, dict[str, list[float]]]:
    steps: Figures = {name: {} for name in runs.names}
    prompts: dict[str, list[float]] = {name: [] for name in runs.names}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for case in CASES:
            for name in runs.names if number % 2 else reversed(runs.names):
                if peers.takes(name, case) and (timing := runs.run(name, case, STEPS + 1)):
                    steps[name].setdefault(case.name, []).append(timing.step_ms)
        for name in runs.names if number % 2 else reversed(runs.names):
            if timing := runs.run(name, PREFILL, 1):
                tokens = PREFILL.prompt * len(PREFILL.experts)
                prompts[name].append(1e3 * tokens / timing.first_ms)
    return steps, prompts


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


def _ratio(values: Sequence[float], to: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(values, to, strict=True)), 3)
