"""Asking a served bundle: questions and replies, independent of the transport."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from merge.experts.examples import Message


@dataclass(frozen=True)
class Question:
    """One greedy reply that is wanted.

    Attributes:
        model: "auto", "backbone" or an expert's name.
        prompt: a text or, in a chat, the user's message.
        max_tokens: most tokens of the reply.
        messages: a whole conversation, in place of the prompt; only in a chat.
    """

    model: str
    prompt: str
    max_tokens: int
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True)
class Reply:
    """A reply.

    Attributes:
        text: of the reply.
        ran: an expert's name, "a+b" for a mix, or "backbone".
        prompt_tokens: tokens of what was asked.
        tokens: tokens of the reply.
    """

    text: str
    ran: str
    prompt_tokens: int = 0
    tokens: int = 0


def nothing() -> None:
    """Do nothing."""


class Ask(Protocol):
    """Answers every question, in their order; many at a time."""

    def __call__(self, questions: Sequence[Question], answered: Callable[[], None] = nothing) -> list[Reply]:
        """Ask; `answered` is called after each reply."""
        ...
