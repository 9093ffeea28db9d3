"""Prompts with the expert that each belongs to, as the user gives them."""

import json
from pathlib import Path

from merge.wording import reason

_TEXTS = ("text", "prompt")
_LABELS = ("task", "expert", "label")


def read_labelled(path: Path) -> list[tuple[str, str | None]]:
    """The prompts of a file of JSON lines: `text` or `prompt`, and `task`, `expert` or `label`, null for no expert.

    Raises:
        ValueError: the file cannot be read, a line is not such an object, or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error
    found = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no prompt")
    return found


def _row(line: str, place: str) -> tuple[str, str | None]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} must be an object")
    text = next((row[key] for key in _TEXTS if key in row), None)
    label = next((key for key in _LABELS if key in row), None)
    if not isinstance(text, str):
        raise ValueError(f"{place} must hold the prompt as text or prompt")
    if label is None or not (row[label] is None or isinstance(row[label], str)):
        raise ValueError(f"{place} must hold the prompt's expert as task, expert or label: a name, or null for none")
    return text, row[label]
