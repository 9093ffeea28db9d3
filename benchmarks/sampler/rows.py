"""Rows a second: the compiled kernel beside its reference in plain torch, by distribution and by setting."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.compiled import Library, library
from kernels.sampling import SamplingRow
from kernels.sampling.compiled import sample_compiled
from kernels.sampling.reference import sample_torch

VOCABULARIES = (32_000, 151_936)
ROWS = 8
SEEN = 8_192
LIMIT_MS = 0.3

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k": {"top_k": 50},
    "top-p": {"top_p": 0.9},
    "min-p": {"min_p": 0.1},
    "top-k and top-p": {"top_k": 20, "top_p": 0.8, "temperature": 0.7},
    "wide top-k and top-p": {"top_k": 20_000, "top_p": 0.9},
    "penalties": {"repetition": 1.1, "presence": 0.5, "frequency": 0.5},
    "penalties and top-p": {"repetition": 1.1, "presence": 0.5, "frequency": 0.5, "top_p": 0.9},
}
"""What the rows ask for; penalties are on `SEEN` tokens."""

Path = Callable[[], Tensor]


def distributions(vocab: int) -> dict[str, Tensor]:
    """[ROWS, vocab] bf16 logits by name, other ones in each row."""
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(ROWS, vocab, generator=generator)

    peaked = normal()
    peaked[:, :20] += 15.0
    ranks = torch.stack([torch.randperm(vocab, generator=generator) for _ in range(ROWS)]) + 1
    found = {"peaked": peaked, "flat": 0.1 * normal(), "heavy-tailed": -1.2 * ranks.log()}
    return {name: logits.to(torch.bfloat16) for name, logits in found.items()}


def measure_rows(rounds: int) -> dict[str, Any]:
    """Milliseconds a row and rows a second of both paths, which take turns.

    Returns:
        `rows`: one entry for each vocabulary, distribution and setting. `ratio` is the reference's time divided
        by the compiled kernel's. Without a compiler, `ratio` and the compiled figures are None. `slowest_ms` is the
        slowest compiled row of each vocabulary.
    """
    kernels = library()
    found: list[dict[str, Any]] = []
    for vocab in VOCABULARIES:
        for distribution, logits in distributions(vocab).items():
            for setting, asked in SETTINGS.items():
                times = _in_turn(_paths(kernels, logits, _rows(vocab, asked)), rounds)
                found.append({"vocab": vocab, "distribution": distribution, "setting": setting, **_figures(**times)})
    slowest = {
        str(vocab): max(row["compiled_ms"] for row in found if row["vocab"] == vocab) if kernels is not None else None
        for vocab in VOCABULARIES
    }
    return {"rows": found, "slowest_ms": slowest, "row_limit_ms": LIMIT_MS}


def _paths(kernels: Library | None, logits: Tensor, rows: list[SamplingRow]) -> dict[str, Path]:
    paths: dict[str, Path] = {"reference": lambda: sample_torch(logits, range(ROWS), rows)}
    if kernels is not None:
        paths["compiled"] = lambda: sample_compiled(kernels, logits, range(ROWS), rows)
    return paths


def _figures(reference: float, compiled: float | None = None) -> dict[str, float | None]:
    return {
        "reference_ms": round(reference, 4),
        "compiled_ms": None if compiled is None else round(compiled, 4),
        "reference_rows_per_s": round(1e3 / reference),
        "compiled_rows_per_s": None if compiled is None else round(1e3 / compiled),
        "ratio": None if compiled is None else round(reference / compiled, 1),
    }


def _rows(vocab: int, asked: dict[str, Any]) -> list[SamplingRow]:
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(ROWS, generator=generator, dtype=torch.float64).tolist()
    seen: dict[str, Any] = {}
    if "repetition" in asked:
        tokens = torch.randperm(vocab, generator=generator)[:SEEN]
        seen = {"seen": tokens, "times": torch.randint(0, 3, (len(tokens),), generator=generator).float()}
    return [SamplingRow(uniform=number, **asked, **seen) for number in uniform]


def _in_turn(paths: dict[str, Path], rounds: int) -> dict[str, float]:
    """Median milliseconds a row of each path."""
    taken: dict[str, list[float]] = {name: [] for name in paths}
    for path in paths.values():
        path()
    for _ in range(rounds):
        for name, path in paths.items():
            began = time.perf_counter()
            path()
            taken[name].append(1e3 * (time.perf_counter() - began) / ROWS)
    return {name: statistics.median(times) for name, times in taken.items()}
