"""Contents that are made up: dates in sentences, weather reports, orders."""

import datetime
import json
import random
import zlib
from collections.abc import Callable
from functools import cache

from serve.demo.zoo.real.task import Content
from serve.demo.zoo.task import Split

_COUNTS = {"train": 3000, "test": 400}
_TEST_SHARE = 8
"""One content in this many belongs to the test split, chosen by a checksum of its text."""


@cache
def contents(draw: Callable[[random.Random], Content], split: Split) -> tuple[Content, ...]:
    """Different contents of one split, always the same ones.

    Args:
        draw: draws one content, of either split.
        split: which contents to keep.
    """
    rng = random.Random(f"{draw.__name__}:{split}")
    found: dict[str, Content] = {}
    while len(found) < _COUNTS[split]:
        content = draw(rng)
        if (zlib.crc32(content.text.encode()) % _TEST_SHARE == 0) == (split == "test"):
            found.setdefault(content.text, content)
    return tuple(found.values())


def draw_date(rng: random.Random) -> Content:
    """A day from 1800 to 2099, written in one of nine ways, alone or in a sentence; the answer is ISO 8601."""
    first, last = datetime.date(1800, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
    date = datetime.date.fromordinal(rng.randint(first, last))
    month, day, year = _MONTHS[date.month - 1], date.day, date.year
    suffix = "th" if day in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    written = rng.choice(
        (
            f"{day} {month} {year}",
            f"{month} {day}, {year}",
            f"{month} {day}{suffix}, {year}",
            f"the {day}{suffix} of {month} {year}",
            f"{day} {month[:3]} {year}",
            f"{month[:3]} {day}, {year}",
            f"{day}-{month[:3]}-{year}",
            f"{year} {month} {day}",
            f"{_WEEKDAYS[date.weekday()]}, {day} {month} {year}",
        )
    )
    sentence = rng.choice(_DATE_SENTENCES).format(d=written, place=rng.choice(_CITIES), name=rng.choice(_NAMES))
    return Content(sentence[0].upper() + sentence[1:], date.isoformat())


def draw_weather(rng: random.Random) -> Content:
    """The readings of a weather station; the answer is a report of two or three sentences."""
    city, (sky, outlook) = rng.choice(_CITIES), rng.choice(tuple(_SKIES.items()))
    low = rng.randint(-12, 22)
    high = low + rng.randint(2, 12)
    feel = next(word for limit, word in _FEELS if high < limit)
    readings = [f"city {city}", f"sky {sky}", f"low {low}", f"high {high}"]
    report = f"It will be a {feel} day in {city} with {outlook}. Expect {low} to {high} degrees."
    if rng.random() < 0.6:
        wind, (short, direction) = rng.randint(5, 70), rng.choice(tuple(_DIRECTIONS.items()))
        strength = "light" if wind < 20 else "fresh" if wind < 40 else "strong"
        readings.append(f"wind {wind} {short}")
        report += f" A {strength} wind of {wind} km/h blows from the {direction}."
    return Content(", ".join(readings), report)


def draw_order(rng: random.Random) -> Content:
    """An order of one or two articles in a sentence; the answer is a JSON object."""
    name, city = rng.choice(_NAMES), rng.choice(_CITIES)
    items, wanted = [], []
    for article in rng.sample(_ARTICLES, rng.choice((1, 2, 2))):
        count, colour = rng.randint(2, 12), rng.choice((None, *_COLOURS))
        number = _NUMBERS[count] if rng.random() < 0.4 else str(count)
        wanted.append(f"{number} {colour} {article}" if colour else f"{number} {article}")
        items.append({"item": article, "count": count, **({"colour": colour} if colour else {})})
    text = rng.choice(_ORDERS).format(name=name, city=city, wanted=" and ".join(wanted))
    return Content(text, json.dumps({"customer": name, "city": city, "items": items}))


_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NAMES = (
    "Aiko", "Anna", "Carlos", "Chen", "Dora", "Emil", "Fatima", "George", "Hana", "Igor",
    "Ivan", "Julia", "Kofi", "Lucia", "Maria", "Nina", "Omar", "Peter", "Ruth", "Sven",
)  # fmt: skip
_CITIES = (
    "Accra", "Berlin", "Bogota", "Cairo", "Delhi", "Dublin", "Hanoi", "Lima", "Lisbon", "Madrid",
    "Nairobi", "Oslo", "Paris", "Prague", "Quito", "Rome", "Seoul", "Tokyo", "Vienna", "Warsaw",
)  # fmt: skip
_ARTICLES = (
    "baskets",
    "benches",
    "blankets",
    "bowls",
    "candles",
    "chairs",
    "cups",
    "lamps",
    "mirrors",
    "rugs",
    "shelves",
)
_COLOURS = ("black", "blue", "brown", "green", "grey", "red", "white", "yellow")
_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_ORDERS = (
    "{name} in {city} orders {wanted}.",
    "Please send {wanted} to {name} in {city}.",
    "This is {name} from {city}. I would like {wanted}.",
    "We need {wanted} in {city}; the name is {name}.",
    "Deliver to {city}: {wanted}, for {name}",
    "{wanted} for {name}, {city}",
)
_DATE_SENTENCES = (
    "{d}",
    "{d}",
    "{name} was born on {d} in {place}.",
    "The contract was signed on {d}.",
    "On {d} the new station in {place} was opened.",
    "Please deliver the parcel to {place} by {d}.",
    "{name} moved to {place} on {d}.",
    "The meeting with {name} is on {d}.",
    "The exhibition in {place} ends on {d}.",
    "Invoice of {d}, to be paid by {name}",
)
_SKIES = {
    "clear": "a clear sky", "cloudy": "many clouds", "fog": "thick fog", "rain": "steady rain",
    "showers": "a few showers", "snow": "snow", "storm": "thunderstorms", "sunny": "plenty of sunshine",
}  # fmt: skip
_FEELS = ((0, "freezing"), (10, "cold"), (18, "cool"), (25, "mild"), (100, "hot"))
_DIRECTIONS = {
    "N": "north", "NE": "north-east", "E": "east", "SE": "south-east",
    "S": "south", "SW": "south-west", "W": "west", "NW": "north-west",
}  # fmt: skip
