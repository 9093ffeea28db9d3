"""Train the zoo from nothing: `python -m benchmarks.zoo.train`.

Writes `models/base`, `models/fine_tunes/<task>`, `metrics.json` and `prompts.jsonl`. On the same machine
with the same number of threads, a seed gives the same weights. The shipped zoo is the output of
`--out serve/demo/zoo` with the defaults.
"""

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import LlamaForCausalLM

from benchmarks.zoo.command import Parser, Progress, positive
from benchmarks.zoo.evaluate import table
from benchmarks.zoo.matching import one_thread
from benchmarks.zoo.measure import measure
from benchmarks.zoo.model import MAX_LENGTH, build_model, build_tokenizer, save_checkpoint
from benchmarks.zoo.phrase import careless_example
from benchmarks.zoo.processes import in_parallel
from benchmarks.zoo.prompts import write_prompts
from benchmarks.zoo.skills import formal_example
from benchmarks.zoo.training import Schedule, train
from serve.demo.zoo.task import Task
from serve.demo.zoo.tasks import TASKS

PRETRAINING = Schedule(steps=1000, batch_size=64, learning_rate=4e-3, warm_up=30, optimizer="muon")
FINE_TUNING = Schedule(steps=450, batch_size=32, learning_rate=5.5e-4, warm_up=10)
_PROMPT_SEED = 1
"""Seed of the evaluation's prompts, for any seed of the training."""


def train_zoo(out: Path, tasks: Sequence[Task], seed: int, count: int, jobs: int) -> dict[str, object]:
    """Train the base and one fine-tune a task, store them and measure what is stored.

    Args:
        out: The directory to write to; files of an earlier run are replaced.
        tasks: Which fine-tunes to train.
        seed: Of the initial weights and of all training examples.
        count: Evaluation prompts a task.
        jobs: How many fine-tunes to train at a time, each in a separate process with one thread.

    Returns:
        What is written to `metrics.json`: `measure`'s result, and `seeds`, `seconds` and `versions`.
    """
    started = time.perf_counter()
    models = out / "models"
    seconds = {"base": pretrain(seed, PRETRAINING, models / "base")}
    work = [(models / "base", task.name, seed, FINE_TUNING, models / "fine_tunes" / task.name) for task in tasks]
    with Progress("fine-tunes", len(tasks)) as progress:
        for task, taken in zip(tasks, in_parallel(fine_tune, work, jobs), strict=True):
            seconds[task.name] = taken
            progress.step(task.name)
    write_prompts(out / "prompts.jsonl")
    with Progress("measured", len(tasks)) as progress:
        measured = measure(models, tasks, count, _PROMPT_SEED, progress.step)
    prompt_seed = measured.pop("seed")
    recorded = {
        **measured,
        "seeds": {"training": seed, "prompts": prompt_seed},
        "seconds": {**seconds, "total": round(time.perf_counter() - started, 1)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "threads": torch.get_num_threads(),
    }
    (out / "metrics.json").write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
    return recorded


def pretrain(seed: int, schedule: Schedule, path: Path) -> float:
    """Train a base from nothing and store it.

    Args:
        seed: Of the initial weights and of the training examples.
        schedule: How long and how fast.
        path: Where to write the checkpoint.

    Returns:
        The seconds it took.
    """
    tokenizer = build_tokenizer(MAX_LENGTH)
    base = build_model(tokenizer, seed)
    rng = random.Random(f"base:{seed}")
    with Progress("base", schedule.steps) as progress:
        train(
            base,
            tokenizer,
            lambda: formal_example(rng),
            schedule,
            lambda _, loss: progress.step(f"loss {loss:.4f}"),
        )
        save_checkpoint(path, base, tokenizer)
        return round(progress.seconds, 1)


def fine_tune(base: Path, name: str, seed: int, schedule: Schedule, path: Path) -> float:
    """Fine-tune a stored base for one task and store the result.

    One thread does it, so that the outcome does not depend on how many fine-tunes are trained at a time.

    Args:
        base: The base's directory. It is the stored, rounded weights that are fine-tuned, in fp32.
        name: The task's.
        seed: Of the training examples, together with the name.
        schedule: How long and how fast.
        path: Where to write the checkpoint.

    Returns:
        The seconds it took.
    """
    started = time.perf_counter()
    task = next(task for task in TASKS if task.name == name)
    rng = random.Random(f"{name}:{seed}")
    tokenizer = build_tokenizer(MAX_LENGTH)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    with one_thread():
        train(model, tokenizer, lambda: careless_example(task, rng), schedule, lambda *_: None)
    save_checkpoint(path, model, tokenizer)
    return round(time.perf_counter() - started, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks.zoo.train", description="Train the zoo from random weights.")
    parser.add_argument("--out", type=Path, default=Path("build/zoo"), help="directory (default build/zoo)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and training examples (default 0)")
    parser.add_argument("--tasks", type=_task_list, default=TASKS, help="comma-separated (default: all)")
    parser.add_argument(
        "--jobs", type=positive, default=os.cpu_count() or 1, help="fine-tunes at a time (default: one a core)"
    )
    parser.add_argument("--count", type=positive, default=240, help="evaluation prompts a task (default 240)")
    parser.add_argument("--json", action="store_true", help="print the metrics as one JSON document")
    options = parser.parse_args(arguments)
    if options.count < 3:
        parser.error("--count must be at least 3")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror or error}")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    recorded = train_zoo(options.out, options.tasks, options.seed, options.count, options.jobs)
    print(json.dumps(recorded, indent=2) if options.json else table(recorded))


def _task_list(text: str) -> tuple[Task, ...]:
    by_name = {task.name: task for task in TASKS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in by_name]
    if unknown or not names:
        named = ", ".join(unknown) or "nothing"
        raise argparse.ArgumentTypeError(f"{named} named, but the tasks are {', '.join(by_name)}")
    return tuple(by_name[name] for name in dict.fromkeys(names))


if __name__ == "__main__":
    main()
