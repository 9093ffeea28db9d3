"""`python -m benchmarks.suite`: every benchmark in its short form, in turn, several times."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.suite.figures import numbers
from serve.version import overtone_version

SCRATCH = "SCRATCH"
"""Stands for an empty folder: results that an earlier state of the project left in the cache are not this one's."""

COMMANDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "demo": (("serve.cli", "demo", "--check", "--json"), ()),
    "expert_linear": (("benchmarks.expert_linear", "--quick", "--json"), ("summary", "read_gbps")),
    "attention": (("benchmarks.attention", "--rounds", "50", "--json"), ()),
    "decode": (("benchmarks.decode", "--quick", "--json"), ()),
    "quality": (("benchmarks.quality", "--domain", "lm", "--quick", "--json", "--cache", SCRATCH), ("rows",)),
}
"""Name → module with its arguments, and the parts of its document to keep (none: all)."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("--out", type=Path, help="results file (default: benchmarks/results/<date>.json)")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions, taking turns (default 3)")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    options = parser.parse_args()
    today = datetime.now(UTC).date().isoformat()
    out = options.out or Path(__file__).parents[1] / "results" / f"{today}.json"
    figures: dict[str, list[float]] = {}
    for number in range(options.repeat):
        for name in options.only:
            print(f"{name}, {number + 1} of {options.repeat}", file=sys.stderr, flush=True)
            for path, value in numbers(run(*COMMANDS[name]), name):
                figures.setdefault(path, []).append(value)
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version()}
    out.write_text(
        json.dumps({"date": today, "version": overtone_version(), "machine": machine, "figures": figures}, indent=1)
    )
    print(out)


def run(command: tuple[str, ...], parts: tuple[str, ...]) -> Any:
    """One benchmark's document, or some parts of it.

    Raises:
        SystemExit: it failed, with its own message on stderr; or its document lacks a part.
    """
    with tempfile.TemporaryDirectory(prefix="overtone-suite-") as scratch:
        arguments = [scratch if part == SCRATCH else part for part in command]
        done = subprocess.run([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"python -m {' '.join(command)} ended with status {done.returncode}")
    report = json.loads(done.stdout)
    if gone := [part for part in parts if part not in report]:
        sys.exit(f"python -m {' '.join(command)} printed no {gone[0]!r}; it has {', '.join(report)}")
    return {key: report[key] for key in parts} if parts else report


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
