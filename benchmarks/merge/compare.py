"""mergekit on the same models, in a separate virtual environment, taking turns with this project's merge."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.merge.launch import merge_once
from benchmarks.merge.pool import lora_name, model_name
from merge.checkpoint import Checkpoint, open_checkpoint

MERGEKIT = "mergekit==0.1.5"
TORCH = "torch==2.13.0"
SAME: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weight": 0.3},
    "ties": {"weight": 1.0, "density": 0.2, "normalize": True},
    "dare_ties": {"weight": 1.0, "density": 0.5, "normalize": True},
}
"""Methods that both have, with parameters that mean the same."""

RANDOM = frozenset({"dare_ties"})
"""Methods that draw numbers: the results of two programs are not compared."""

TOLERANCE = 1e-6


def cache_dir() -> Path:
    """Where the environment is kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "overtone" / "mergekit"


def prepare(say: Callable[[str], None]) -> Path:
    """Make the environment unless it is there.

    Returns:
        Its Python.

    Raises:
        RuntimeError: it cannot be installed; the message ends with pip's last line.
    """
    home = cache_dir()
    python, program = home / "bin" / "python", home / "bin" / "mergekit-yaml"
    if not program.is_file():
        say(f"installing {MERGEKIT} into {home}")
        venv.create(home, with_pip=True, clear=True)
        done = subprocess.run(
            [home / "bin" / "pip", "install", "--quiet", TORCH, MERGEKIT], capture_output=True, text=True, check=False
        )
        if done.returncode or not program.is_file():
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(f"{MERGEKIT} cannot be installed: {lines[-1]}")
    return python


def compare(
    folder: Path,
    count: int,
    rounds: int,
    methods: Collection[str],
    say: Callable[[str], None],
    loras: bool = False,
) -> dict[str, Any]:
    """Merge one pool by both programs in turn, with float32 arithmetic and output.

    Before each merge the models are read once, so that both find them in the page cache as far as it holds them.

    Args:
        folder: of the pool.
        count: models, or LoRAs.
        rounds: merges by each program.
        methods: of `SAME`.
        say: gets a line after each merge.
        loras: merge the pool's LoRAs in place of its full fine-tunes.

    Returns:
        For each method and program the median seconds of the merge alone, of the processors for it, and of the whole
        process, and the most memory in MB; and of methods that draw nothing how far the results are apart:
        `max_abs_difference`, and over how many entries it exceeds `TOLERANCE`.
    """
    python = prepare(say)
    results = {}
    for method, parameters in SAME.items():
        if method in methods:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                paths = Path(scratch)
                results[method] = _compared(paths, python, folder, method, count, parameters, rounds, say, loras)
    return {"version": MERGEKIT, "models": count, "loras": loras, "rounds": rounds, "methods": results}


def _compared(
    scratch: Path, python: Path, folder: Path, method: str, count: int, parameters: dict[str, Any], rounds: int,
    say: Callable[[str], None], loras: bool,
) -> dict[str, Any]:  # fmt: skip
    recipe = _recipe(scratch, folder, method, count, parameters, loras)
    ours, theirs = scratch / "ours", scratch / "mergekit"
    merges = {
        "overtone": lambda: merge_once(folder, method, count, ours, "float32", parameters, loras),
        "mergekit": lambda: _mergekit(python, recipe, theirs),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in merges}
    for number in range(rounds):
        for directory in (ours, theirs, scratch / f"{theirs.name}-loras"):
            shutil.rmtree(directory, ignore_errors=True)
        ours.mkdir()
        for name, merge in merges.items():
            runs[name].append(_timed(folder, merge))
            told = f"{runs[name][-1]['seconds']:.1f} s, {runs[name][-1]['peak_rss_mb']:.0f} MB"
            say(f"{method}, round {number + 1} of {rounds}: {name} {told}")
    medians = {
        name: {
            field: statistics.median(run[field] for run in found)
            for field in ("seconds", "processor_seconds", "process_seconds", "peak_rss_mb")
        }
        for name, found in runs.items()
    }
    speedup = medians["mergekit"]["seconds"] / medians["overtone"]["seconds"]
    apart = {} if method in RANDOM else difference(open_checkpoint(ours), open_checkpoint(theirs))
    return {**medians, "speedup": speedup, **apart}


def _timed(folder: Path, merge: Callable[[], dict[str, float]]) -> dict[str, float]:
    for file in sorted(folder.glob("*/model.safetensors")):
        with file.open("rb") as weights:
            while weights.read(1 << 24):
                pass
    start = time.perf_counter()
    result = merge()
    return {**result, "process_seconds": time.perf_counter() - start}


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


def _recipe(
    scratch: Path, folder: Path, method: str, count: int, parameters: dict[str, Any], loras: bool = False
) -> Path:
    names = [
        f"{folder / 'base'}+{folder / lora_name(i)}" if loras else str(folder / model_name(i)) for i in range(count)
    ]
    own = {key: value for key, value in parameters.items() if key in {"weight", "density"}}
    common = {key: value for key, value in parameters.items() if key not in own}
    document = {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": [{"model": name, "parameters": own} for name in names],
        "parameters": {"normalize": False, "lambda": 1.0, **common},
        "dtype": "float32",
    }
    path = scratch / "recipe.yml"
    path.write_text(yaml.safe_dump(document))
    return path


def _mergekit(python: Path, recipe: Path, out: Path) -> dict[str, float]:
    command = [python, Path(__file__).with_name("mergekit_child.py"), recipe, out]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise RuntimeError(f"mergekit failed: {lines[-1]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    print(json.dumps({"environment": str(prepare(lambda text: print(text, file=sys.stderr)))}))
