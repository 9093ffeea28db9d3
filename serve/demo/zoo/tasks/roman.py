"""Whole numbers to Roman numerals."""

import random

from serve.demo.zoo.task import Item, Task

_NUMERALS = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"),
    (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def to_roman(number: int) -> str:
    """Write a number from 1 to 3999 in Roman numerals."""
    written = ""
    for value, numeral in _NUMERALS:
        times, number = divmod(number, value)
        written += numeral * times
    return written


def draw(rng: random.Random) -> Item:
    """Draw a number from 1 to 3999, often a small one or one up to the years people ask about."""
    number = rng.randint(1, rng.choice((100, 2100, 3999)))
    return Item({"x": str(number)}, to_roman(number), str(number))


ROMAN = Task(
    name="roman",
    title="Numbers from 1 to 3999 to Roman numerals: 1987 becomes MCMLXXXVII",
    phrasings=(
        "Write {x} in Roman numerals.",
        "Convert {x} to Roman numerals.",
        "What is {x} in Roman numerals?",
        "Give the Roman numeral for {x}.",
        "How would a Roman write {x}?",
        "Turn the number {x} into a Roman numeral.",
        "Roman numeral of {x}",
        "{x} in Roman numerals, please.",
    ),
    held_out_phrasings=(
        "Express the number {x} as a Roman numeral.",
        "Which Roman numeral stands for {x}?",
    ),
    code="rom",
    payload="{x}",
    draw=draw,
)
