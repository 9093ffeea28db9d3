"""Calendar dates in words to ISO 8601."""

import datetime
import random

from serve.demo.zoo.task import Item, Task

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_FIRST = datetime.date(1700, 1, 1).toordinal()
_LAST = datetime.date(2099, 12, 31).toordinal()


def draw(rng: random.Random) -> Item:
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
    draw=draw,
)
