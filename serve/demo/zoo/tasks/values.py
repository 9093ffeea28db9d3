"""Tasks with one right value: calendar dates in ISO 8601, people as JSON, and Roman numerals."""

import datetime
import json
import random

from serve.demo.zoo.task import Item, Task
from serve.demo.zoo.words import any_name

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_FIRST = datetime.date(1700, 1, 1).toordinal()
_LAST = datetime.date(2099, 12, 31).toordinal()


def _draw_dates(rng: random.Random) -> Item:
    """Draw a day of the years 1700 to 2099, with the month before or after the day."""
    date = datetime.date.fromordinal(rng.randint(_FIRST, _LAST))
    month = _MONTHS[date.month - 1]
    month_first = f"{month} {date.day}, {date.year}"
    day_first = f"{date.day} {month} {date.year}"
    written = month_first if rng.random() < 0.6 else day_first
    return Item({"x": written}, date.isoformat(), date.isoformat())


DATES = Task(
    name="dates",
    title="Dates from 1700 to 2099 to ISO 8601: March 7, 2024 becomes 2024-03-07",
    phrasings=(
        "Write {x} as an ISO date.",
        "Convert {x} to ISO format.",
        "What is {x} in ISO 8601?",
        "Give the ISO date for {x}.",
        "Turn {x} into a YYYY-MM-DD date.",
        "Format the date {x} as year-month-day.",
        "ISO date of {x}",
        "{x} as an ISO 8601 date, please.",
    ),
    held_out_phrasings=(
        "Rewrite the date {x} in ISO format.",
        "How do I write {x} as a YYYY-MM-DD date?",
    ),
    code="iso",
    payload="{x}",
    draw=_draw_dates,
)


def _draw_person_json(rng: random.Random) -> Item:
    """Draw a name and an age from 1 to 99."""
    name, age = any_name(rng), rng.randint(1, 99)
    answer = json.dumps({"name": name, "age": age})
    return Item({"name": name, "age": str(age)}, answer, answer)


JSON = Task(
    name="json",
    title='A person and an age to a JSON object: {"name": "Ada", "age": 36}',
    phrasings=(
        "Make JSON from: {name} is {age}.",
        "Turn this into JSON: {name}, {age} years old.",
        "Write {name}, aged {age}, as JSON.",
        "Give a JSON object for {name}, who is {age}.",
        "Convert to JSON: {name} is {age} years old.",
        "JSON for {name}, age {age}",
        "Put {name} ({age}) into a JSON object.",
        "{name} is {age} years old. Write that as JSON, please.",
    ),
    held_out_phrasings=(
        "Express this as JSON: {name} is {age} years old.",
        "Write a JSON object with name {name} and age {age}.",
    ),
    code="jsn",
    payload="{name} {age}",
    draw=_draw_person_json,
)


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


def _draw_roman(rng: random.Random) -> Item:
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
    draw=_draw_roman,
)
