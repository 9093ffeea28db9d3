"""Chats of several turns, made from single prompts, and what sessions make of them."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.router.classifiers import Classifier
from serve.decision import Decision
from serve.sessions import TURNS, followed

CHATS = 300

FOLLOW_UPS = (
    "shorter, please", "thanks", "are you sure?", "why?", "can you say that again?", "and now?", "ok", "go on",
    "that is not what I meant", "please try again", "what do you mean?", "one more", "in more detail, please", "yes",
    "hm, and the other one?", "no, the first one", "great, do the same again", "is that all?", "what else?",
    "could you make it simpler?",
)  # fmt: skip
"""Messages that say nothing of the task: they belong to whatever the chat is about."""

PATTERN = "A++A+B+"
"""Turns of a chat: a prompt of the first task, of the second, or a follow-up."""

Turn = tuple[str, str]
"""A message and the expert that it belongs to."""


@dataclass(frozen=True)
class ChatScores:
    """Shares of the turns.

    Attributes:
        followed: with sessions, those that went to the right expert.
        alone: the same if each message decides alone.
        moved: turns of the task that the chat is at, which took it to another expert or to none, with sessions.
        missed: turns that begin another task, which did not take the chat to its expert, with sessions.
    """

    followed: float
    alone: float
    moved: float
    missed: float


def make_chats(prompts: Sequence[Turn], seed: int = 0) -> list[list[Turn]]:
    """Chats that follow `PATTERN`, each of two tasks."""
    by_task: Mapping[str, list[str]] = defaultdict(list)
    for text, task in prompts:
        by_task[task].append(text)
    rng, chats = random.Random(seed), []
    for _ in range(CHATS):
        first, second = rng.sample(sorted(by_task), 2)
        chat: list[Turn] = []
        for kind in PATTERN:
            task = {"A": first, "B": second}.get(kind) or chat[-1][1]
            chat.append((rng.choice(FOLLOW_UPS if kind == "+" else by_task[task]), task))
        chats.append(chat)
    return chats


def score_chats(model: Classifier, chats: Sequence[Sequence[Turn]]) -> ChatScores:
    """Route every turn of every chat, with the turns before it and alone."""
    texts = sorted({text for chat in chats for text, _ in chat})
    chances = dict(zip(texts, model.probabilities_of(texts), strict=True))
    names = tuple(model.names)
    right, alone, moved, missed = [], [], [], []
    for chat in chats:
        single = [_decision(names, chances[text], model.threshold) for text, _ in chat]
        for place, (_, task) in enumerate(chat):
            expert = followed(single[max(0, place + 1 - TURNS) : place + 1]).expert
            right.append(expert == task)
            alone.append(single[place].expert == task)
            if place:
                before = followed(single[max(0, place - TURNS) : place]).expert
                if chat[place - 1][1] == task:
                    moved.append(expert != before)
                else:
                    missed.append(expert != task)
    return ChatScores(*(float(np.mean(one)) for one in (right, alone, moved, missed)))


def _decision(names: tuple[str, ...], chances: NDArray[np.float64], threshold: float) -> Decision:
    best = int(chances.argmax())
    if chances[best] < threshold:
        return Decision(None, max(0.0, 1.0 - float(chances.sum())), names, chances)
    return Decision(names[best], float(chances[best]), names, chances)
