"""Calibration examples with their answers."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from merge.experts.calibration import CalibrationError


@dataclass(frozen=True)
class Example:
    """A prompt and, where the file gives one, its answer."""

    prompt: str
    answer: str | None


def read_examples(file: Path, tasks: Collection[str] | None, answered: bool) -> dict[str, list[Example]]:
    """Read a JSON-lines file of {"task", "prompt", "answer"} objects.

    Args:
        file: the file.
        tasks: the tasks wanted; None: all that are there.
        answered: an answer is needed.

    Returns:
        The examples by task, in the order of the tasks' names, within a task in the file's order.

    Raises:
        CalibrationError: no such file, a line that is no such object, or a task that has no example.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"no readable calibration file at {file}: {error}") from error
    found: dict[str, list[Example]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            task, example = _parse(line, f"{file} line {number}", answered)
            found.setdefault(task, []).append(example)
    for task in found if tasks is None else tasks:
        if task not in found:
            raise CalibrationError(f"{file} has no prompt of the target task {task!r}; it has {', '.join(found)}")
    wanted = sorted(found if tasks is None else set(tasks))
    if not wanted:
        raise CalibrationError(f"{file} is empty: a loss needs prompts")
    return {task: found[task] for task in wanted}


def _parse(line: str, place: str, answered: bool) -> tuple[str, Example]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{place} is no JSON: {error}") from error
    keys = ("task", "prompt", "answer") if answered else ("task", "prompt")
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) and item[key] for key in keys):
        raise CalibrationError(f"{place} must be an object with the strings {', '.join(keys)}, none of them empty")
    return item["task"], Example(item["prompt"], item.get("answer"))
