"""Train the zoo from nothing: `python -m benchmarks.zoo.train`.

Writes `models/base`, `models/fine_tunes/<task>`, `metrics.json` and `prompts.jsonl`. On the same machine
with the same number of threads, a seed gives the same weights. The shipped zoo is the output of
`--out benchmarks/zoo` with the defaults.
"""

import argparse
import copy
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.zoo.command import Parser, positive
from benchmarks.zoo.evaluate import table
from benchmarks.zoo.measure import measure
from benchmarks.zoo.model import MAX_LENGTH, build_model, save_checkpoint
from benchmarks.zoo.phrase import careless_example
from benchmarks.zoo.progress import Progress
from benchmarks.zoo.prompts import write_prompts
from benchmarks.zoo.skills import formal_example
from benchmarks.zoo.task import Example, Task
from benchmarks.zoo.tasks import TASKS
from benchmarks.zoo.tokenizer import build_tokenizer
from benchmarks.zoo.training import Schedule, train

PRETRAINING = Schedule(steps=900, batch_size=96, learning_rate=2e-3, warm_up=50)
FINE_TUNING = Schedule(steps=150, batch_size=64, learning_rate=3e-4, warm_up=10)
_PROMPT_SEED = 1
"""Of the evaluation's prompts, whatever seed the training had."""


def train_zoo(out: Path, tasks: Sequence[Task], seed: int, count: int) -> dict[str, object]:
    """Train the base and one fine-tune a task, store them and measure what is stored.

    Args:
        out: The directory to write to; files of an earlier run are replaced.
        tasks: Which fine-tunes to train.
        seed: Of the initial weights and of all training examples.
        count: Evaluation prompts a task.

    Returns:
        What is written to `metrics.json`: `measure`'s result, and `seeds`, `seconds` and `versions`.
    """
    started = time.perf_counter()
    models = out / "models"
    tokenizer = build_tokenizer(MAX_LENGTH)
    base = build_model(tokenizer, seed)
    rng = random.Random(f"base:{seed}")
    seconds = {"base": _run("base", base, tokenizer, lambda: formal_example(rng), PRETRAINING)}
    save_checkpoint(models / "base", base, base.state_dict(), tokenizer)
    for task in tasks:
        fine_tune = copy.deepcopy(base)
        draw = _drawer(task, random.Random(f"{task.name}:{seed}"))
        seconds[task.name] = _run(task.name, fine_tune, tokenizer, draw, FINE_TUNING)
        save_checkpoint(models / "fine_tunes" / task.name, fine_tune, fine_tune.state_dict(), tokenizer)
    write_prompts(out / "prompts.jsonl")
    measured = measure(models, tasks, count, _PROMPT_SEED, _report_measured)
    recorded = {
        **measured,
        "seeds": {"training": seed, "prompts": measured["seed"]},
        "seconds": {**seconds, "total": round(time.perf_counter() - started, 1)},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "threads": torch.get_num_threads(),
    }
    del recorded["seed"]
    (out / "metrics.json").write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
    return recorded


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks.zoo.train", description="Train the zoo from nothing.")
    parser.add_argument("--out", type=Path, default=Path("build/zoo"), help="directory (default build/zoo)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and training examples (default 0)")
    parser.add_argument("--tasks", type=_task_list, default=TASKS, help="comma-separated (default: all)")
    parser.add_argument("--count", type=positive, default=300, help="evaluation prompts a task (default 300)")
    parser.add_argument("--json", action="store_true", help="print the metrics as one JSON document")
    options = parser.parse_args(arguments)
    if options.count < 3:
        parser.error("--count should be at least 3")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror or error}")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    recorded = train_zoo(options.out, options.tasks, options.seed, options.count)
    print(json.dumps(recorded, indent=2) if options.json else table(recorded))


def _run(
    name: str,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    draw: Callable[[], Example],
    schedule: Schedule,
) -> float:
    with Progress(name, schedule.steps) as progress:
        train(model, tokenizer, draw, schedule, progress.step)
        return round(progress.seconds, 1)


def _drawer(task: Task, rng: random.Random) -> Callable[[], Example]:
    return lambda: careless_example(task, rng)


def _report_measured(name: str) -> None:
    print(f"measured {name}", file=sys.stderr, flush=True)


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
