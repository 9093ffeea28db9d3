"""The help of the benchmarks' options says what a value is."""

import ast
from pathlib import Path

import benchmarks

FRAGMENTS = ("of ", "for ", "from ", "to ", "how ", "which ", "whose ", "default")
"""Beginnings of a help text that lacks the noun it speaks of."""


def test_no_help_text_begins_in_the_middle_of_a_sentence():
    texts = [text for file in Path(benchmarks.__file__).parent.rglob("*.py") for text in _helps(file)]
    assert len(texts) > 100
    assert [text for text in texts if text.startswith(FRAGMENTS)] == []


def _helps(file: Path) -> list[str]:
    """The constant parts with which the help texts of a file's options begin."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    values = [word.value for call in calls for word in call.keywords if word.arg == "help"]
    values = [value.values[0] if isinstance(value, ast.JoinedStr) else value for value in values]
    return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
