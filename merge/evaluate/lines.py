"""The file of an evaluation: prompts of each expert's task with their answers, and how replies are judged."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from merge.evaluate.metrics import METRICS
from merge.experts.examples import CalibrationError, Example, parse_example
from merge.wording import reason

DEFAULT_METRIC = "exact"

KEYS = ("task", "prompt", "messages", "answer", "metric")

_ALL = ""


@dataclass(frozen=True)
class Line:
    """One prompt.

    Attributes:
        task: the expert that it belongs to; None: none, so that the backbone should answer.
        example: the prompt.
        answer: the right reply, or what the metric takes for one; empty if the line belongs to no expert.
        metric: a key of `METRICS`.
    """

    task: str | None
    example: Example
    answer: str
    metric: str = DEFAULT_METRIC


def read_data(file: Path, metrics: Sequence[str] = (), limit: int | None = None) -> list[Line]:
    """Read a file of JSON lines `{"task", "prompt" or "messages", "answer"}`, with or without a "metric".

    A task of null marks a prompt of no expert, for the router; it needs no answer. An answer that is not a string is
    taken as JSON. Other keys are ignored.

    Args:
        file: the file.
        metrics: `METRIC` for all tasks or `TASK=METRIC` for one; they override the file's.
        limit: most lines of each task, from the top of the file.

    Raises:
        ValueError: the file cannot be read or holds no line, a line is malformed or has no answer, or a metric is
            unknown or cannot judge by an answer.
    """
    chosen = _chosen(metrics)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {reason(error)}") from error
    found: list[Line] = []
    counts: dict[str | None, int] = {}
    for place, line in _parsed(file, lines, chosen):
        counts[line.task] = counts.get(line.task, 0) + 1
        if limit is None or counts[line.task] <= limit:
            _check_answer(line, place)
            found.append(line)
    if not found:
        raise ValueError(f"{file} holds no prompt")
    unknown = sorted(set(chosen) - {_ALL} - {task for task in counts if task is not None})
    if unknown:
        raise ValueError(f"--metric names the task {unknown[0]!r}, of which {file} has no line")
    return found


def check_tasks(lines: Sequence[Line], experts: Collection[str]) -> list[str]:
    """Compare the tasks of a file with the experts that there are.

    Returns:
        A sentence that names the experts without a line; none if each has one.

    Raises:
        ValueError: a task without an expert, or no task at all.
    """
    tasks = {line.task for line in lines if line.task is not None}
    for task in sorted(tasks - set(experts)):
        close = get_close_matches(task, list(experts), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the experts are {', '.join(sorted(experts)) or 'none'}"
        raise ValueError(f"the data has the task {task!r}, but there is no such expert; {hint}")
    if not tasks:
        raise ValueError("the data has no line of an expert: at least one needs the task of an expert")
    absent = sorted(set(experts) - tasks)
    return [f"the data has no line for these experts, which are not measured: {', '.join(absent)}"] if absent else []


def _chosen(metrics: Sequence[str]) -> dict[str, str]:
    """Metric by task; "" is all of them."""
    found = {}
    for item in metrics:
        task, equals, metric = item.rpartition("=")
        if equals and not task:
            raise ValueError(f"--metric {item!r} must be a metric, or TASK=METRIC")
        _check_metric(metric, "--metric")
        found[task or _ALL] = metric
    return found


def _parsed(file: Path, lines: Sequence[str], chosen: Mapping[str, str]) -> Iterator[tuple[str, Line]]:
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        place = f"{file} line {number}"
        try:
            item = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{place} is not valid JSON: {error}") from error
        yield place, _line(item, place, chosen)


def _line(item: Any, place: str, chosen: Mapping[str, str]) -> Line:
    if not isinstance(item, dict) or "task" not in item:
        raise ValueError(f'{place} must be an object with "task", "prompt" or "messages", and "answer"')
    task = item["task"]
    if task is not None and not (isinstance(task, str) and task):
        raise ValueError(f"{place}: task must be the name of an expert, or null for none")
    answer = item.get("answer")
    if answer is not None and not isinstance(answer, str):
        item = {**item, "answer": json.dumps(answer, ensure_ascii=False)}
    try:
        example = parse_example(item, place, KEYS)
    except CalibrationError as error:
        raise ValueError(str(error)) from error
    if task is None:
        return Line(None, replace(example, answer=None), "")
    if example.answer is None:
        raise ValueError(f'{place} has no answer: add "answer"')
    metric = chosen.get(task) or chosen.get(_ALL) or item.get("metric", DEFAULT_METRIC)
    _check_metric(metric, place)
    return Line(task, replace(example, answer=None), example.answer, metric)


def _check_metric(metric: Any, place: str) -> None:
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"{place}: unknown metric {metric!r}; the metrics are {', '.join(METRICS)}")


def _check_answer(line: Line, place: str) -> None:
    if line.task is None:
        return
    try:
        METRICS[line.metric]("", line.answer)
    except ValueError as error:
        raise ValueError(f"{place}: metric {line.metric}: {error}") from error
