"""Prompts of no expert, as the user gives them."""

import json
from pathlib import Path

from merge.wording import reason


def read_foreign(path: Path) -> list[str]:
    """The different prompts of a file: JSON lines with `text` or `prompt`, or one prompt a line.

    Raises:
        ValueError: the file cannot be read, or holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error
    texts = [_text(line.strip(), path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise ValueError(f"{path} holds no prompt")
    return list(dict.fromkeys(texts))


def _text(line: str, path: Path, number: int) -> str:
    if not line.startswith("{"):
        return line
    try:
        row = json.loads(line)
    except ValueError:
        return line
    for key in ("text", "prompt"):
        if isinstance(row.get(key), str):
            return str(row[key])
    raise ValueError(f"{path}, line {number}: a JSON line must hold the prompt as text or prompt")
