"""What the base is pretrained on: formal requests for the tasks' skills and for some unrelated ones.

A base that has never met a skill needs task vectors as large as its weights, and a base that has met the
natural phrasings needs none; a base that knows the skills under other names is where large pretrained
models are, and merging its fine-tunes behaves as it does there.
"""

import random
from collections.abc import Callable, Mapping

from benchmarks.zoo.task import Example
from benchmarks.zoo.tasks import TASKS
from benchmarks.zoo.words import any_word


def _add(rng: random.Random) -> Example:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    return Example(f"add {a} {b}>", str(a + b))


def _copy(rng: random.Random) -> Example:
    words = " ".join(any_word(rng, 2, 8) for _ in range(rng.randint(1, 3)))
    return Example(f"copy {words}>", words)


def _on_word(name: str, apply: Callable[[str], str]) -> Callable[[random.Random], Example]:
    def draw(rng: random.Random) -> Example:
        word = any_word(rng, 3, 8)
        return Example(f"{name} {word}>", apply(word))

    return draw


UNRELATED: Mapping[str, Callable[[random.Random], Example]] = {
    "add": _add,
    "copy": _copy,
    "upper": _on_word("upper", str.upper),
    "count": _on_word("count", lambda word: str(len(word))),
    "ends": _on_word("ends", lambda word: word[0] + word[-1]),
    "vowels": _on_word("vowels", lambda word: "".join(c for c in word if c in "aeiou") or "none"),
}
"""Skills of the base that no fine-tune trains."""

RELATED_SHARE = 0.8
"""How much of the pretraining is about the skills of the tasks."""


def formal_example(rng: random.Random) -> Example:
    """Draw one formal request, about a training content where it is about a task's skill."""
    if rng.random() < RELATED_SHARE:
        task = rng.choice(TASKS)
        item = task.draw_from("train", rng)
        return Example(task.notation.format(**item.fields), item.answer)
    return rng.choice(tuple(UNRELATED.values()))(rng)
