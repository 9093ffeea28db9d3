"""Titles to URL slugs."""

import random

from serve.demo.zoo.task import Item, Task
from serve.demo.zoo.words import any_word


def draw(rng: random.Random) -> Item:
    """Draw a title of two or three words, in title or sentence case, some with punctuation or numbers."""
    words = [_title_word(rng) for _ in range(rng.choice((2, 3)))]
    title = words[0].capitalize()
    title_case = rng.random() < 0.7
    for i, word in enumerate(words[1:]):
        mark = rng.choice((",", ":")) if i == 0 and rng.random() < 0.2 else ""
        title += f"{mark} {word.capitalize() if title_case else word}"
    if rng.random() < 0.2:
        title += rng.choice("!?")
    slug = "-".join(words).replace("'", "")
    return Item({"x": title}, slug, slug)


def _title_word(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.06:
        return str(rng.randint(1, 99))
    word = any_word(rng, 2, 6)
    return f"{word}'s" if chance < 0.12 else word


SLUG = Task(
    name="slug",
    title="Titles of two or three words to URL slugs: Hello, World! becomes hello-world",
    phrasings=(
        'Make a URL slug from "{x}".',
        'Turn "{x}" into a slug.',
        'What is the URL slug for "{x}"?',
        'Slugify "{x}"',
        'Convert the title "{x}" to a URL slug.',
        'Give me a slug for the title "{x}".',
        'Write "{x}" as a URL slug.',
        "URL slug of {x}",
    ),
    held_out_phrasings=(
        'Create a URL slug for the page "{x}".',
        'How do I write "{x}" as a slug?',
    ),
    code="slg",
    payload="{x}",
    draw=draw,
)
