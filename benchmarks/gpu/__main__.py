"""`python -m benchmarks.gpu`: check the GPU path on a card, in about eight minutes.

Each section runs in a separate process with a time limit, so that a crash, a hang or a persistent CUDA error costs
only the rest of that section. Errors are compared with bounds; times are printed beside what `benchmarks.gpu.roofline`
models. `--smoke` does all of it on a CPU with tiny shapes, which shows that the check itself works, and nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.report import Value, failed, gather
from serve.engine.device import prepare

SECTIONS = {"ceilings": 50, "experts": 100, "attention": 80, "engine": 190, "steps": 130, "linears": 110}
"""Seconds that each may take, in the order of what matters most."""


def main() -> None:
    """The command line.

    Raises:
        SystemExit: there is no GPU, or something failed.
    """
    options = _options()
    if options.section:
        _section(options.section, options.smoke)
        return
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; --smoke tries the check out on a CPU")
    document = check(options.only, options.budget, options.smoke, quiet=options.json)
    print(json.dumps(document) if options.json else json.dumps(document, indent=1))
    if document["failed"]:
        raise SystemExit(1)


def check(names: Sequence[str], budget: float, smoke: bool, quiet: bool = False) -> dict[str, Value]:
    """Run sections, each in its own process.

    Args:
        names: of `SECTIONS`.
        budget: seconds for all of them.
        smoke: on the CPU.
        quiet: say nothing on stderr meanwhile.

    Returns:
        The results of each section, and under `failed` the names of what failed: sections, or results of them.
    """
    started = time.monotonic()
    sections: dict[str, Value] = {}
    missed: list[str] = []
    for name in names:
        left = budget - (time.monotonic() - started)
        if left <= 0:
            missed.append(f"{name} (no time left)")
            continue
        found, reason = _child(name, min(SECTIONS[name], left), smoke)
        sections[name] = found
        missed += [f"{name}.{key}" for key in failed(found)] + ([f"{name} ({reason})"] if reason else [])
        if not quiet:
            print(f"{name}: {len(found)} results{', ' + reason if reason else ''}", file=sys.stderr, flush=True)
    return {"smoke": smoke, "sections": sections, "failed": missed}


def _child(name: str, seconds: float, smoke: bool) -> tuple[dict[str, Value], str | None]:
    """A section's results, and why it ended early."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, *(["--smoke"] if smoke else [])]
    reason = None
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            command, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            code, reason = 0, f"stopped after {seconds:.0f} s"
        log.seek(0)
        found, rest = gather(log.read().splitlines())
    if code:
        reason = f"exit {code}: {' | '.join(rest[-3:])[-400:]}"
    return found, reason


def _section(name: str, smoke: bool) -> None:
    if smoke:
        torch.set_num_threads(1)
    device = torch.device("cpu" if smoke else "cuda")
    prepare(device)
    importlib.import_module(f"benchmarks.gpu.{name}").run(Clock(device))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="sections to run")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for everything (default 600)")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU: only tries the check out")
    parser.add_argument("--json", action="store_true", help="print one JSON document on one line, and nothing else")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    options: argparse.Namespace = parser.parse_args()
    return options


if __name__ == "__main__":
    main()
