"""Saying in one line what is wrong with a block of a recipe."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Location = tuple[str | int, ...]

ALIKE = 0.75
"""How alike two names must be for one to be suggested: difflib's 0.6 takes 'gate_mode' for 'base_model'."""


def faults(error: ValidationError, place: Location, block: type[BaseModel]) -> list[str]:
    """Word what pydantic found.

    Args:
        error: from validating `block`.
        place: the block's place in the recipe.
        block: gives the keys that an unknown one may have been meant as.
    """
    found = []
    places = [item["loc"] for item in error.errors()]
    for item in error.errors():
        # pydantic counts only the valid entries of a list, so a faulty entry also makes the list too short.
        if item["type"] == "too_short" and any(_is_within(place, item["loc"]) for place in places):
            continue
        place_in_block = tuple(part for part in item["loc"] if not _is_branch(part, block))
        location = (*place, *place_in_block)
        message = item["msg"].replace("Value error, ", "")
        if item["type"] == "extra_forbidden":
            message = f"unknown key {among(str(location[-1]), keys_at(block, place_in_block[:-1]))}"
            location = location[:-1]
        found.append(f"{dotted(location)}: {message}" if location else message)
    return found


def keys_at(block: type[BaseModel], location: Location) -> list[str]:
    """The keys of a block within a block."""
    for part in location:
        field = next((f for n, f in block.model_fields.items() if part in {n, f.alias}), None)
        inner = None if field is None else next(_blocks(field.annotation), None)
        block = inner or block
    return [field.alias or name for name, field in block.model_fields.items()]


def dotted(location: Location) -> str:
    """A place in a recipe, as in models.1.name."""
    return ".".join(str(part) for part in location)


def among(name: str, known: Sequence[str]) -> str:
    """Quote an unknown name, with what it may have been meant as."""
    close = get_close_matches(name, known, n=1, cutoff=ALIKE)
    return f"{name!r}; did you mean {close[0]!r}?" if close else f"{name!r}; there are {', '.join(known) or 'none'}"


def _is_within(place: Location, outer: Location) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _blocks(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _blocks(argument)


def _is_branch(part: str | int, block: type[BaseModel]) -> bool:
    """Whether a part of a pydantic location names a member of a union, not a key."""
    names = {inner.__name__ for field in block.model_fields.values() for inner in _blocks(field.annotation)}
    return isinstance(part, str) and (part in names or part.startswith(("literal[", "function-", "constrained-")))
