"""What parsers make of text."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CallDelta:
    """A part of a call.

    Attributes:
        index: the call's number within the message.
        name: the tool's, on the call's first part.
        arguments: JSON text to append to the call's arguments.
    """

    index: int
    name: str | None = None
    arguments: str = ""


Event = str | CallDelta
"""A piece of content, or a part of a call."""


def held_back(text: str, tags: Sequence[str]) -> int:
    """Characters at the end of `text` that may be the beginning of a tag."""
    most = min(max(map(len, tags), default=1) - 1, len(text))
    return next((size for size in range(most, 0, -1) if any(tag.startswith(text[-size:]) for tag in tags)), 0)
