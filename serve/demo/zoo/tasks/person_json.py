"""A phrase about a person to a JSON object."""

import json
import random

from serve.demo.zoo.task import Item, Task
from serve.demo.zoo.words import any_name


def draw(rng: random.Random) -> Item:
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
    draw=draw,
)
