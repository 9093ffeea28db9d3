"""Asking a served bundle: what goes in, what comes back, however it is carried."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One greedy completion: `model` is "auto", "backbone" or an expert's name."""

    model: str
    prompt: str


@dataclass(frozen=True)
class Reply:
    """The completion's text, and what ran: an expert's name or "backbone"."""

    text: str
    ran: str


Ask = Callable[[Sequence[Question]], list[Reply]]
"""Answers every question, in their order; many at a time."""
