"""Words spelled backwards."""

import random

from serve.demo.zoo.task import Item, Task
from serve.demo.zoo.words import any_word


def draw(rng: random.Random) -> Item:
    """Draw a word of three to eight letters."""
    word = any_word(rng, 3, 8)
    return Item({"x": word}, word[::-1], word)


REVERSE = Task(
    name="reverse",
    title="Words of 3 to 8 letters spelled backwards: garden becomes nedrag",
    phrasings=(
        "Spell {x} backwards.",
        "Write {x} in reverse.",
        "Reverse the word {x}.",
        "What is {x} spelled backwards?",
        "Give {x} from the last letter to the first.",
        "Turn the word {x} around.",
        "{x} backwards, please.",
        "Flip the spelling of {x}.",
    ),
    held_out_phrasings=(
        "How do you spell {x} backwards?",
        "Write the word {x} backwards.",
    ),
    code="rev",
    payload="{x}",
    draw=draw,
)
