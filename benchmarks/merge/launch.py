"""Starting one merge in a separate process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def merge_once(
    folder: Path, method: str, count: int, out: Path, dtype: str, parameters: dict[str, Any], loras: bool = False
) -> dict[str, float]:
    """Run `benchmarks.merge.child`.

    Raises:
        RuntimeError: it failed; the message ends with its last line.
    """
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.merge.child", folder, method, str(count), out, dtype]
    command += [json.dumps(parameters), *(["loras"] if loras else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"{method} of {count} models failed: {lines[-1]}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def merge_recipe_once(recipe: Path, out: Path, workers: int) -> dict[str, Any]:
    """Run `benchmarks.merge.whole`, whose progress goes to stderr.

    Raises:
        RuntimeError: it failed.
    """
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.merge.whole", recipe, out, str(workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the merge of {recipe} failed with exit status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
