"""The `prompt` field: a text, several texts, one list of token ids or several."""

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

_SHAPES = "a string, a list of strings, a list of token ids, or a list of lists of token ids"

MAX_PROMPTS = 16_384
"""Lists that a body may hold; `--max-choices` bounds how many prompts are answered."""

Prompts = tuple[str | tuple[int, ...], ...]


def _prompts(value: Any) -> Prompts:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if _is_ids(value):
            return (tuple(value),)
        _check_count(value)
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if all(isinstance(item, list) and item and _is_ids(item) for item in value):
            return tuple(tuple(item) for item in value)
    raise PydanticCustomError("prompt", f"must be {_SHAPES}, and not empty")


def _check_count(prompts: list[Any]) -> None:
    if len(prompts) > MAX_PROMPTS:
        raise PydanticCustomError("prompt", f"holds {len(prompts)} items; at most {MAX_PROMPTS} prompts are read")


def _is_ids(value: list[Any]) -> bool:
    # type() and not isinstance(): true is an int to Python and not a token id to anybody.
    return all(type(item) is int and item >= 0 for item in value)


_EXAMPLES = ["Write 1994 as a Roman numeral."]
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_TEXTS = {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}}
_LISTS_OF_IDS = {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _IDS}
_PROMPTS = {"anyOf": [{"type": "string"}, _TEXTS, _IDS, _LISTS_OF_IDS], "examples": _EXAMPLES}

PromptField = Annotated[Prompts, PlainValidator(_prompts), WithJsonSchema(_PROMPTS)]
"""Always a tuple of prompts, each a text or token ids, whatever of the four shapes came in."""


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        _check_count(value)
        if all(isinstance(item, str) for item in value):
            return tuple(value)
    raise PydanticCustomError("prompt", "must be a string or a list of strings, and not empty")


TextPromptField = Annotated[
    tuple[str, ...],
    PlainValidator(_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS], "examples": _EXAMPLES}),
]
"""Texts only: what the router reads."""
