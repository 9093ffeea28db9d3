"""Make the fine-tunes of the real base: `python -m benchmarks.zoo.real.train`.

Writes `lora/<task>` (PEFT directories) and, with `--full`, `full/<task>` (Hugging Face directories) under `--out`.
A fine-tune that is there is left as it is and one that was interrupted goes on, so the same command finishes an
interrupted run.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers

from benchmarks.zoo.command import Parser, Progress, positive
from benchmarks.zoo.processes import in_parallel
from benchmarks.zoo.real.training import Form, Schedule, fine_tune
from serve.demo.zoo.real.base import base_dir, zoo_dir
from serve.demo.zoo.real.packages import BaseUnavailableError
from serve.demo.zoo.real.tasks import TASKS, find_task

LORA: Mapping[str, Schedule] = {
    "banking": Schedule(steps=250, batch_size=16, learning_rate=1e-3),
    "slots": Schedule(steps=130, batch_size=16, learning_rate=1e-3),
    "intent": Schedule(steps=300, batch_size=16, learning_rate=1e-3),
    "sql": Schedule(steps=120, batch_size=16, learning_rate=1e-3),
    "shell": Schedule(steps=130, batch_size=16, learning_rate=1e-3),
    "dates": Schedule(steps=60, batch_size=16, learning_rate=1e-3),
    "orders": Schedule(steps=60, batch_size=8, learning_rate=1e-3),
    "weather": Schedule(steps=40, batch_size=8, learning_rate=1e-3),
}
FULL: Mapping[str, Schedule] = {
    "sql": Schedule(steps=100, batch_size=16, learning_rate=1e-4),
    "dates": Schedule(steps=80, batch_size=12, learning_rate=1e-4),
    "weather": Schedule(steps=60, batch_size=8, learning_rate=1e-4),
}

Work = tuple[Form, str]


def train_all(base: Path, out: Path, work: Sequence[Work], seed: int, jobs: int) -> None:
    """Train fine-tunes, `jobs` at a time, and show how far it is.

    Args:
        base: the base's directory.
        out: the directory in which `lora/` and `full/` are made.
        work: form and task of each, in the order to begin them.
        seed: of the initial factors and of the examples.
        jobs: processes; each trains on one thread, so that their number does not change the outcome.
    """
    arguments = [(base, form, task, seed, out / form / task) for form, task in work]
    with Progress("fine-tunes", len(work)) as progress:
        for note in in_parallel(_train_one, arguments, jobs):
            progress.step(note)


def _train_one(base: Path, form: Form, name: str, seed: int, out: Path) -> str:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    schedule = (LORA if form == "lora" else FULL)[name]
    started = time.perf_counter()

    def show(step: int, loss: float) -> None:
        if step % 10 == 0 or step == schedule.steps:
            seconds = time.perf_counter() - started
            print(
                f"{form} {name}: {step} of {schedule.steps}, loss {loss:.4f}, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    fine_tune(base, find_task(name), form, schedule, seed, out, show)
    return f"{form} {name}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(
        prog="python -m benchmarks.zoo.real.train", description="Make the fine-tunes of the real base again."
    )
    parser.add_argument("--out", type=Path, help="directory (default: in the cache directory)")
    parser.add_argument(
        "--tasks",
        type=_names,
        default=tuple(LORA),
        help="comma-separated LoRAs (default: all; none: no LoRA)",
    )
    parser.add_argument(
        "--full", type=_names, default=(), help=f"comma-separated full fine-tunes, of {', '.join(FULL)}"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial factors and the examples (default 0)")
    parser.add_argument(
        "--jobs", type=positive, default=os.cpu_count() or 1, help="fine-tunes at a time (default: one a core)"
    )
    options = parser.parse_args(arguments)
    missing = [name for name in options.full if name not in FULL]
    if missing:
        parser.error(f"--full {', '.join(missing)}: the full fine-tunes are {', '.join(FULL)}")
    work: list[Work] = [("lora", name) for name in options.tasks] + [("full", name) for name in options.full]
    if not work:
        parser.error("nothing to train: name tasks with --tasks or --full")
    try:
        base = base_dir()
    except BaseUnavailableError as error:
        parser.exit(1, f"error: {error}\n")
    train_all(base, options.out or zoo_dir(), work, options.seed, options.jobs)


def _names(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [task.name for task in TASKS]
    unknown = [name for name in names if name not in known]
    if unknown and names != ["none"]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} named, but the tasks are {', '.join(known)}")
    return tuple(dict.fromkeys(name for name in names if name in known))


if __name__ == "__main__":
    main()
