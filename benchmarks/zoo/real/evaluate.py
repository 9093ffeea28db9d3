"""Measure the real base and its fine-tunes: `python -m benchmarks.zoo.real.evaluate`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from benchmarks.zoo.command import Parser, positive
from benchmarks.zoo.real.measure import Loaded, accuracy, load
from serve.demo.zoo.real.base import base_dir, zoo_dir
from serve.demo.zoo.real.packages import BaseUnavailableError
from serve.demo.zoo.real.tasks import TASKS, find_task


def measure(base: Path, models: Path, count: int, seed: int, base_too: bool) -> dict[str, dict[str, Any]]:
    """Accuracy of each fine-tune on test contents in held-out wordings, and of the base on the same requests.

    Args:
        base: the base's directory.
        models: a folder with a directory for each task that is measured.
        count: requests a task.
        seed: of the choice of requests.
        base_too: whether to ask the base.

    Returns:
        For each task `fine_tune`, `base` (None if it is not asked), `prompts` and `metric`.
    """
    plain: Loaded | None = load(base) if base_too else None
    measured: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        if not (models / task.name).is_dir():
            continue
        examples = task.examples("test", count, seed, "held_out")
        measured[task.name] = {
            "fine_tune": round(accuracy(load(base, models / task.name), task, examples), 4),
            "base": None if plain is None else round(accuracy(plain, task, examples), 4),
            "prompts": len(examples),
            "metric": task.metric,
        }
        print(f"measured {task.name}: {measured[task.name]}", file=sys.stderr, flush=True)
    return measured


def table(measured: dict[str, dict[str, Any]]) -> str:
    """Lay out what `measure` returned as lines of text."""
    lines = [f"{'task':11}{'answer':12}{'metric':8}{'prompts':>8}{'base':>8}{'fine-tune':>11}"]
    for name, row in measured.items():
        asked = "-" if row["base"] is None else format(row["base"], ".3f")
        kind = find_task(name).kind
        lines.append(f"{name:11}{kind:12}{row['metric']:8}{row['prompts']:8}{asked:>8}{row['fine_tune']:11.3f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(
        prog="python -m benchmarks.zoo.real.evaluate", description="Measure the real base and its fine-tunes."
    )
    parser.add_argument(
        "--models", type=Path, default=zoo_dir() / "lora", help="folder of fine-tunes (default: the cache's LoRAs)"
    )
    parser.add_argument("--count", type=positive, default=100, help="requests a task (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the requests (default 1)")
    parser.add_argument("--no-base", action="store_true", help="do not ask the base")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    if not any((options.models / task.name).is_dir() for task in TASKS):
        parser.error(
            f"{options.models} holds none of {', '.join(task.name for task in TASKS)}: "
            "`python -m benchmarks.zoo.real.train` makes them"
        )
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        base = base_dir()
    except BaseUnavailableError as error:
        parser.exit(1, f"error: {error}\n")
    measured = measure(base, options.models, options.count, options.seed, not options.no_base)
    print(json.dumps(measured, indent=2) if options.json else table(measured))


if __name__ == "__main__":
    main()
