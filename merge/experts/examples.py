"""The calibration file: each task's prompts, as plain text or as conversations."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

KEYS = ("task", "prompt", "messages", "answer")


class CalibrationError(ValueError):
    """A calibration file is missing, malformed or lacks a task. The message is one line."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One line of the file.

    Attributes:
        text: the prompt, or the last user message: what the router is asked with.
        messages: the conversation that needs a reply; None for a plain prompt.
        answer: a reference answer, or the assistant's message that ended the conversation.
    """

    text: str
    messages: tuple[Message, ...] | None = None
    answer: str | None = None


def read_examples(file: Path, tasks: Collection[str]) -> dict[str, list[Example]]:
    """Read the examples of a recipe's tasks.

    Returns:
        Each task's examples with distinct prompts, in the file's order.

    Raises:
        CalibrationError: no such file, a malformed line, a task that the recipe does not have, or a task of the recipe
            without a prompt.
    """
    found: dict[str, dict[tuple[str, tuple[Message, ...] | None], Example]] = {task: {} for task in tasks}
    for place, task, example in read_lines(file):
        if task not in found:
            close = get_close_matches(task, list(found), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the recipe has {', '.join(sorted(found))}"
            raise CalibrationError(f"{place}: no model is called {task!r}; {hint}")
        found[task].setdefault((example.text, example.messages), example)
    for task, examples in found.items():
        if not examples:
            raise CalibrationError(f'{file} has no prompt of {task}: add lines like {{"task": "{task}", "prompt": …}}')
    return {task: list(examples.values()) for task, examples in found.items()}


def read_prompts(file: Path, tasks: Collection[str]) -> dict[str, list[str]]:
    """The distinct texts of `read_examples`: what a router learns from."""
    return {task: texts(examples) for task, examples in read_examples(file, tasks).items()}


def texts(examples: Collection[Example]) -> list[str]:
    """The distinct texts of some examples, in their order."""
    return list(dict.fromkeys(example.text for example in examples))


def read_lines(file: Path) -> Iterator[tuple[str, str, Example]]:
    """Read a JSON-lines file of {"task", "prompt"} or {"task", "messages"} objects, with or without an "answer".

    Other keys are ignored. If the messages end with the assistant's, that one is the answer and what comes before it
    the prompt. With both keys, as some chat data sets have them, the messages are taken.

    Yields:
        The line's place for messages, its task, and the example.

    Raises:
        CalibrationError: the file does not exist, or a line is not such an object.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"cannot read the calibration file at {file}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{file} line {number}"
            yield place, *_parse(line, place)


def _parse(line: str, place: str) -> tuple[str, Example]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{place} is not valid JSON: {error}") from error
    if not isinstance(item, dict) or not isinstance(item.get("task"), str):
        raise CalibrationError(f'{place} must be an object with the strings "task" and "prompt", or with "messages"')
    return item["task"], parse_example(item, place)


def parse_example(item: Mapping[str, Any], place: str, keys: Sequence[str] = KEYS) -> Example:
    """Read the prompt and the answer of one line's object.

    Args:
        item: has "prompt" or "messages", with or without "answer".
        place: of the line, for messages.
        keys: that a line may have. Data sets carry ids and sources; only what looks like one of these is refused.

    Raises:
        CalibrationError: it is not such an object.
    """
    for key in sorted(set(item) - set(keys)):
        close = get_close_matches(key, [known for known in keys if known not in item], n=1, cutoff=0.85)
        if close:
            raise CalibrationError(f"{place} has the unknown key {key!r}; did you mean {close[0]!r}?")
    if "messages" not in item and not isinstance(item.get("prompt"), str):
        raise CalibrationError(f'{place} must be an object with the strings "task" and "prompt", or with "messages"')
    answer = item.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise CalibrationError(f"{place}: answer must be a string")
    if "messages" not in item:
        if not item["prompt"]:
            raise CalibrationError(f"{place} has an empty prompt")
        return Example(item["prompt"], None, answer)
    messages = _messages(item["messages"], place)
    if messages[-1].role == "assistant":
        answer = messages[-1].content if answer is None else answer
        messages = messages[:-1]
    said = [message.content for message in messages if message.role == "user"]
    if not said or not said[-1].strip():
        raise CalibrationError(f"{place} has no user message that a reply could follow")
    return Example(said[-1], messages, answer)


def _messages(value: Any, place: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise CalibrationError(f"{place}: messages must be a list of objects with role and content, at least one")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise CalibrationError(f"{place}: each of the messages must have the strings role and content")
    return tuple(Message(message["role"], message["content"]) for message in value)
