"""Which expert continues a chat: its current one, until a message clearly belongs to another.

"Shorter, please" says nothing of what the chat is about, and on its own would go to the backbone. So a chat is decided
turn by turn, with hysteresis: the expert of a turn keeps the chat unless the next message's
best expert is another one, with a probability of `SURE` or more and `RATIO` times that of the one that has it.
"""

from collections.abc import Sequence
from dataclasses import replace

from serve.decision import Decision

SURE = 0.8
"""With 0.5 three times as many follow-ups of `python -m benchmarks.router`'s chats took the chat away, with 0.9 every
second new topic stayed with the old expert."""

RATIO = 4.0

TURNS = 4
"""The number of last messages of the user that are routed: each costs a decision."""


def followed(decisions: Sequence[Decision]) -> Decision:
    """The decision of a chat's last message.

    Args:
        decisions: what each message of the user asks for by itself, at least one.
    """
    held: Decision | None = None
    for alone in decisions:
        if held is None or held.expert is None or alone.expert == held.expert:
            held = alone
            continue
        held = replace(alone, session="switched") if _clearly_another(alone, held.expert) else _kept(held, alone)
    assert held is not None
    return held


def _clearly_another(alone: Decision, current: str) -> bool:
    if alone.expert is None:
        return False
    chance = alone.confidence
    return chance >= SURE and chance >= RATIO * float(alone.chances[alone.names.index(current)])


def _kept(held: Decision, alone: Decision) -> Decision:
    """The expert that has the chat, as sure as when it got it; the scores are the message's."""
    return replace(held, chances=alone.chances, session="kept")
