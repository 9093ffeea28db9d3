"""The letters of a word in alphabetical order."""

import random

from serve.demo.zoo.task import Item, Task
from serve.demo.zoo.words import any_word


def draw(rng: random.Random) -> Item:
    """Draw a word of three to six letters."""
    word = any_word(rng, 3, 6)
    return Item({"x": word}, "".join(sorted(word)), word)


SORT = Task(
    name="sort",
    title="The 3 to 6 letters of a word in alphabetical order: planet becomes aelnpt",
    phrasings=(
        "Sort the letters of {x}.",
        "Put the letters of {x} in order.",
        "Arrange the letters of {x} alphabetically.",
        "What are the letters of {x} in alphabetical order?",
        "Give the sorted letters of {x}.",
        "Order the letters in {x} from a to z.",
        "Letters of {x}, sorted",
        "Sort the word {x} alphabetically, please.",
    ),
    held_out_phrasings=(
        "Write the letters of {x} in alphabetical order.",
        "Can you sort the letters in {x}?",
    ),
    code="srt",
    payload="{x}",
    draw=draw,
)
