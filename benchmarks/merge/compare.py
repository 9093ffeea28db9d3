"""mergekit on the same models: in a virtual environment of its own, by its command line, taking turns with ours."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.merge.launch import merge_once
from benchmarks.merge.pool import model_name
from merge.checkpoint import Checkpoint, open_checkpoint

MERGEKIT = "mergekit==0.1.4"
TORCH = "torch==2.13.*"
SAME: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weight": 0.3},
    "ties": {"weight": 1.0, "density": 0.2, "normalize": True},
}
"""Methods that both have, with parameters that mean the same."""

TOLERANCE = 1e-6


def cache_dir() -> Path:
    """Where the environment is kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "overtone" / "mergekit"


def prepare(say: Callable[[str], None]) -> Path:
    """Make the environment unless it is there.

    Returns:
        Its mergekit-yaml.

    Raises:
        RuntimeError: it cannot be installed; the message ends with pip's last line.
    """
    home = cache_dir()
    program = home / "bin" / "mergekit-yaml"
    if not program.is_file():
        say(f"installing {MERGEKIT} into {home}")
        venv.create(home, with_pip=True, clear=True)
        done = subprocess.run(
            [home / "bin" / "pip", "install", "--quiet", TORCH, MERGEKIT], capture_output=True, text=True, check=False
        )
        if done.returncode or not program.is_file():
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(f"{MERGEKIT} cannot be installed: {lines[-1]}")
    return program


def compare(folder: Path, count: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Merge one pool by both programs, in turns, with float32 arithmetic and output.

    Returns:
        For each method the median seconds of a whole process and of the merging alone where it is known (ours), and how
        far the results are apart: `max_abs_difference`, and over how many entries it exceeds `TOLERANCE`.
    """
    program = prepare(say)
    results = {}
    for method, parameters in SAME.items():
        seconds: dict[str, list[float]] = {"ours_process": [], "ours_merge": [], "mergekit_process": []}
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            recipe = _recipe(Path(scratch), folder, method, count, parameters)
            for number in range(rounds):
                ours, theirs = Path(scratch, f"ours-{number}"), Path(scratch, f"mergekit-{number}")
                ours.mkdir()
                start = time.perf_counter()
                inner = merge_once(folder, method, count, ours, "float32", parameters)
                seconds["ours_process"].append(time.perf_counter() - start)
                seconds["ours_merge"].append(inner["seconds"])
                start = time.perf_counter()
                _mergekit(program, recipe, theirs)
                seconds["mergekit_process"].append(time.perf_counter() - start)
                say(f"{method}, round {number + 1} of {rounds}: " + _last(seconds))
            apart = difference(open_checkpoint(ours), open_checkpoint(theirs))
        results[method] = {"seconds": {key: statistics.median(value) for key, value in seconds.items()}, **apart}
    return {"version": MERGEKIT, "models": count, "rounds": rounds, "methods": results}


def difference(ours: Checkpoint, theirs: Checkpoint) -> dict[str, Any]:
    """How far two checkpoints are apart, over the tensors of ours.

    Entries that are equal in magnitude at the cut of a trim may be chosen differently by the two programs; they are why
    the entries over the tolerance are counted.
    """
    largest, over, entries = 0.0, 0, 0
    for name in ours.tensors:
        apart = (ours.tensor(name, torch.float32) - theirs.tensor(name, torch.float32)).abs()
        largest = max(largest, float(apart.max()))
        over += int((apart > TOLERANCE).sum())
        entries += apart.numel()
    return {"max_abs_difference": largest, "entries_over_tolerance": over, "entries": entries, "tolerance": TOLERANCE}


def _recipe(scratch: Path, folder: Path, method: str, count: int, parameters: dict[str, Any]) -> Path:
    own = {key: value for key, value in parameters.items() if key in {"weight", "density"}}
    common = {key: value for key, value in parameters.items() if key not in own}
    document = {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / model_name(i)), "parameters": own} for i in range(count)],
        "parameters": {"normalize": False, "lambda": 1.0, **common},
        "dtype": "float32",
    }
    path = scratch / "recipe.yml"
    path.write_text(yaml.safe_dump(document))
    return path


def _mergekit(program: Path, recipe: Path, out: Path) -> None:
    command: list[str | Path] = [program, recipe, out, "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise RuntimeError(f"mergekit failed: {lines[-1]}")


def _last(seconds: dict[str, list[float]]) -> str:
    return ", ".join(f"{key} {value[-1]:.1f} s" for key, value in seconds.items())


if __name__ == "__main__":
    print(json.dumps({"environment": str(prepare(lambda text: print(text, file=sys.stderr)))}))
