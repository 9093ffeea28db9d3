"""Words to a camelCase name."""

import random

from serve.demo.zoo.task import Item, Task
from serve.demo.zoo.words import any_word


def draw(rng: random.Random) -> Item:
    """Draw two or three lower-case words."""
    words = [any_word(rng, 2, 6) for _ in range(rng.choice((2, 3)))]
    name = words[0] + "".join(word.capitalize() for word in words[1:])
    return Item({"x": " ".join(words)}, name, name)


CAMEL = Task(
    name="camel",
    title="Two or three words to a camelCase name: user account name becomes userAccountName",
    phrasings=(
        'Write "{x}" in camelCase.',
        'Convert "{x}" to camelCase.',
        'Turn the words "{x}" into camelCase.',
        'Make a camelCase name from "{x}".',
        'What is "{x}" in camelCase?',
        "Camel case of {x}",
        'Give the camelCase form of "{x}".',
        '"{x}" as a camelCase variable name, please.',
    ),
    held_out_phrasings=(
        'Rewrite "{x}" in camelCase.',
        'How do I write "{x}" as a camelCase name?',
    ),
    code="cml",
    payload="{x}",
    draw=draw,
)
