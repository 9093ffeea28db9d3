"""The words and names that prompts are made of: everyday ones, and made-up ones so that any word works."""

import random
from pathlib import Path

_HERE = Path(__file__).parent

WORDS: tuple[str, ...] = tuple((_HERE / "words.txt").read_text(encoding="utf-8").split())
"""Everyday English words of two to eight letters."""

NAMES: tuple[str, ...] = tuple((_HERE / "names.txt").read_text(encoding="utf-8").split())
"""First names from many places."""

_CONSONANTS = "bcdfghjklmnpqrstvwxyz"
_VOWELS = "aeiou"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def made_up_word(rng: random.Random, shortest: int, longest: int) -> str:
    """Make up a word: usually pronounceable, one time in three any letters at all."""
    length = rng.randint(shortest, longest)
    if rng.random() < 1 / 3:
        return "".join(rng.choice(_LETTERS) for _ in range(length))
    offset = rng.randrange(2)
    return "".join(rng.choice(_VOWELS if (i + offset) % 2 else _CONSONANTS) for i in range(length))


def any_word(rng: random.Random, shortest: int, longest: int) -> str:
    """Draw a word of bounded length, as often an everyday one as a made-up one."""
    if rng.random() < 0.5:
        while True:
            word = rng.choice(WORDS)
            if shortest <= len(word) <= longest:
                return word
    return made_up_word(rng, shortest, longest)


def any_name(rng: random.Random) -> str:
    """Draw a person's name, one time in three a made-up one."""
    if rng.random() < 1 / 3:
        return made_up_word(rng, 3, 7).capitalize()
    return rng.choice(NAMES)
