"""Labelled prompts for calibrating experts and training routers, as JSON lines."""

import json
from pathlib import Path

from serve.demo.zoo.task import Split
from serve.demo.zoo.tasks import TASKS


def write_prompts(path: Path, split: Split = "train", per_task: int = 64, seed: int = 0) -> None:
    """Write lines `{"task": ..., "prompt": ..., "answer": ...}`, task after task.

    Only training phrasings are used, whatever the split: what is calibrated on these prompts can be
    tested on wordings that it has not seen.

    Args:
        path: The file to write; an existing one is replaced.
        split: Whose contents to use.
        per_task: How many prompts a task.
        seed: The same arguments give the same bytes.

    Raises:
        ValueError: An argument is out of range.
    """
    lines = [
        json.dumps({"task": task.name, "prompt": example.prompt, "answer": example.answer})
        for task in TASKS
        for example in task.generate(split, per_task, seed)
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
