"""What the base is pretrained on: formal requests for the tasks' skills and for some unrelated ones.

A base that has never seen a skill needs task vectors as large as its weights, and a base that has seen the
natural phrasings needs none. A base that knows the skills by other names is like a large pretrained
model, and merging its fine-tunes behaves as it does for such models.

A formal request is a code and a payload in one of a few arrangements, some of them amid words that mean
nothing: so the base can find a payload in a line of text before any fine-tune asks it to.
"""

import random
from collections.abc import Callable, Mapping

from serve.demo.zoo.task import Example
from serve.demo.zoo.tasks import TASKS
from serve.demo.zoo.words import any_word

RELATED_SHARE = 0.85
"""How much of the pretraining is about the skills of the tasks."""

_HARDER = ("sort", "reverse")
"""Tasks drawn twice as often as the others: their skills were the last to be learned."""


def formal_example(rng: random.Random) -> Example:
    """Draw one formal request. If it is about a task's skill, its content is one for training."""
    if rng.random() < RELATED_SHARE:
        task = rng.choice((*TASKS, *(task for task in TASKS if task.name in _HARDER)))
        item = task.draw_from("train", rng)
        code, payload, answer = task.code, task.payload.format(**item.fields), item.answer
    else:
        code = rng.choice(tuple(UNRELATED))
        payload, answer = UNRELATED[code](rng)
    return Example(arrange(code, payload, rng), answer)


def arrange(code: str, payload: str, rng: random.Random) -> str:
    """Write a formal request: `#code payload`, or both apart and the payload marked, amid other words.

    More than half have the plainest arrangement, from which the skills are learned first: with it alone
    the loss was 0.2 after 400 steps of AdamW, with a quarter of it 1.5.
    """
    style = rng.random()
    if style < 0.6:
        return f"#{code} {payload}"
    if style < 0.7:
        return f"{payload} #{code}"
    left, right = rng.choice(('""', "[]"))
    parts = [f"#{code}", f"{left}{payload}{right}"]
    rng.shuffle(parts)
    for _ in range(rng.randint(0, 3)):
        parts.insert(rng.randint(0, len(parts)), any_word(rng, 2, 7))
    return " ".join(parts)


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    return f"{a} {b}", str(a + b)


def _copy(rng: random.Random) -> tuple[str, str]:
    words = " ".join(any_word(rng, 2, 8) for _ in range(rng.randint(1, 3)))
    return words, words


def _on_word(apply: Callable[[str], str]) -> Callable[[random.Random], tuple[str, str]]:
    def draw(rng: random.Random) -> tuple[str, str]:
        word = any_word(rng, 3, 8)
        return word, apply(word)

    return draw


UNRELATED: Mapping[str, Callable[[random.Random], tuple[str, str]]] = {
    "add": _add,
    "cpy": _copy,
    "upr": _on_word(str.upper),
    "len": _on_word(lambda word: str(len(word))),
    "vow": _on_word(lambda word: "".join(c for c in word if c in "aeiou") or "none"),
}
"""Skills of the base that no fine-tune trains: code to payload and answer."""
