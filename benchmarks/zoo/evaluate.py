"""Measure a zoo's stored checkpoints: `python -m benchmarks.zoo.evaluate`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from benchmarks.zoo.command import Parser, positive
from benchmarks.zoo.matching import exact_match
from benchmarks.zoo.measure import measure
from serve.demo.tiny import models_dir
from serve.demo.zoo.tasks import TASKS

__all__ = ["exact_match", "main", "table"]


def table(measured: dict[str, Any]) -> str:
    """Lay out what `measure` returned as lines of text."""
    header = f"{'task':9}{'fine-tune':>11}{'held-out':>10}{'base':>7}{'average':>9}{'elsewhere':>11}{'rel. norm':>11}"
    lines = [header]
    for name, row in measured["tasks"].items():
        tuned, elsewhere = row["fine_tune"], row["elsewhere"]
        lines.append(
            f"{name:9}{tuned['all']:11.3f}{tuned['held_out_phrasings']:10.3f}{row['base']:7.3f}"
            f"{row['plain_average']:9.3f}{'-' if elsewhere is None else format(elsewhere, '.3f'):>11}"
            f"{row['relative_norm']:11.3f}"
        )
    mean = measured["mean"]
    lines.append(
        f"{'mean':9}{mean['fine_tune']:11.3f}{mean['held_out_phrasings']:10.3f}{mean['base']:7.3f}"
        f"{mean['plain_average']:9.3f}{'':11}{mean['relative_norm']:11.3f}"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks.zoo.evaluate", description="Measure a zoo's stored checkpoints.")
    parser.add_argument(
        "--models", type=Path, default=models_dir(), help="folder of the checkpoints (default: the shipped models)"
    )
    parser.add_argument("--count", type=positive, default=240, help="prompts a task (default 240)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    present = [task for task in TASKS if (options.models / "fine_tunes" / task.name / "config.json").is_file()]
    if not present or not (options.models / "base" / "config.json").is_file():
        parser.error(f"{options.models} holds no base/ and fine_tunes/<task>/")
    if options.count < 3:
        parser.error("--count must be at least 3")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    measured = measure(
        options.models, present, options.count, options.seed, lambda name: print(f"measured {name}", file=sys.stderr)
    )
    print(json.dumps(measured, indent=2) if options.json else table(measured))


if __name__ == "__main__":
    main()
