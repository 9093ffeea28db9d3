"""What `overtone bench latency` reads from its options, and the table it prints."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.bench.workload import Arrivals, WorkloadError


def arrivals_of(rates: Sequence[float], users: Sequence[int], constant: bool) -> list[Arrivals]:
    """Arrivals to compare: by rates or by users; one user if neither is given.

    Raises:
        WorkloadError: both are given, or one is not positive.
    """
    if rates and users:
        raise WorkloadError("give --rate for an open loop or --users for a closed one, not both")
    if any(value <= 0 for value in (*rates, *users)):
        raise WorkloadError("--rate and --users must be more than 0")
    if rates:
        return [Arrivals("constant" if constant else "poisson", rate=rate) for rate in rates]
    return [Arrivals("closed", users=count) for count in users or (1,)]


def counts_of(text: str) -> list[int]:
    """Numbers of experts: `0,1,2,4,8`.

    Raises:
        WorkloadError: it is something else, or does not begin with the 0 that all are compared to.
    """
    parts = text.split(",")
    if parts[0] != "0" or not all(part.isdigit() for part in parts):
        raise WorkloadError(f"--sweep-experts {text!r} is not a list of numbers that begins with 0, as 0,1,2,4,8")
    return [int(part) for part in parts]


def read_prompts(path: Path) -> tuple[str, ...]:
    """Field `prompt` of every line of a JSON lines file.

    Raises:
        WorkloadError: a line (named) has none, or the file is empty.
    """
    prompts = []
    for number, line in enumerate(path.read_text().rstrip("\n").split("\n"), 1):
        try:
            prompts.append(str(json.loads(line)["prompt"]))
        except (ValueError, KeyError, TypeError) as error:
            raise WorkloadError(f"{path}, line {number}: not a JSON object with a field prompt") from error
    if not prompts:
        raise WorkloadError(f"{path} holds no prompts")
    return tuple(prompts)


def table(report: dict[str, Any]) -> str:
    """The runs, a line each."""
    lines = [
        f"{'load':>14} {'experts':>8} {'req/s':>8} {'tok/s':>8} {'good/s':>7} {'failed':>6}"
        f"  {'TTFT p50':>9} {'p99':>8} {'TPOT p50':>9} {'p99':>8} {'E2E p50':>9} {'p99':>9}  ms"
    ]
    for run in report["runs"]:
        load = f"{run['users']} users" if run["users"] else f"{run['rate']:g}/s {run['arrivals']}"
        figures = [f"{_of(run, 'ttft_ms', q):>{w}}" for q, w in (("p50", 9), ("p99", 8))]
        figures += [f"{_of(run, 'tpot_ms', q):>{w}}" for q, w in (("p50", 9), ("p99", 8))]
        figures += [f"{_of(run, 'e2e_ms', q):>{w}}" for q, w in (("p50", 9), ("p99", 9))]
        lines.append(
            f"{load:>14} {run['distinct']:>8} {run['requests_per_s']:>8} {run['tokens_per_s']:>8}"
            f" {run['goodput_per_s']:>7} {run['failed']:>6}  {' '.join(figures)}"
        )
        lines += [f"{count:>6} × {message}" for message, count in run["errors"].items()]
    if "tax" in report:
        lines.append("time per token over the backbone's, by distinct experts: " + str(report["tax"]))
    return "\n".join(lines)


def _of(run: dict[str, Any], field: str, quantile: str) -> str:
    return "-" if run[field] is None else f"{run[field][quantile]:.1f}"
