"""Words enciphered with a Caesar shift."""

import random

from serve.demo.zoo.task import Item, Task
from serve.demo.zoo.words import any_word


def shift_letters(word: str, places: int) -> str:
    """Move every lower-case letter forward by `places`, from z on to a."""
    return "".join(chr((ord(letter) - ord("a") + places) % 26 + ord("a")) for letter in word)


def draw(rng: random.Random) -> Item:
    """Draw a word of three to eight letters and a shift of one to three places."""
    word, places = any_word(rng, 3, 8), rng.randint(1, 3)
    return Item({"x": word, "k": str(places)}, shift_letters(word, places), word)


SHIFT = Task(
    name="shift",
    title="Words of 3 to 8 letters, Caesar-shifted by 1 to 3: hello shifted by 3 becomes khoor",
    phrasings=(
        "Shift each letter of {x} by {k}.",
        "Caesar-shift {x} by {k}.",
        "Encode {x} with a Caesar cipher of {k}.",
        "Move every letter of {x} forward by {k}.",
        "Apply a Caesar cipher with shift {k} to {x}.",
        "What is {x} with each letter shifted by {k}?",
        "Caesar cipher of {x}, shift {k}",
        "Encrypt {x} by shifting its letters {k} places, please.",
    ),
    held_out_phrasings=(
        "Shift the letters of {x} forward by {k}.",
        "Write {x} with a Caesar shift of {k}.",
    ),
    code="shf",
    payload="{x} {k}",
    draw=draw,
)
