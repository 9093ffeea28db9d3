"""Tasks about words: camelCase names, words backwards or enciphered, letters in order, and slugs of titles."""

import random

from serve.demo.zoo.task import Item, Task
from serve.demo.zoo.words import any_word


def _draw_camel(rng: random.Random) -> Item:
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
    draw=_draw_camel,
)


def _draw_reverse(rng: random.Random) -> Item:
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
    draw=_draw_reverse,
)


def shift_letters(word: str, places: int) -> str:
    """Move every lower-case letter forward by `places`, from z on to a."""
    return "".join(chr((ord(letter) - ord("a") + places) % 26 + ord("a")) for letter in word)


def _draw_shift(rng: random.Random) -> Item:
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
    draw=_draw_shift,
)


def _draw_slug(rng: random.Random) -> Item:
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
    draw=_draw_slug,
)


def _draw_sort(rng: random.Random) -> Item:
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
    draw=_draw_sort,
)
