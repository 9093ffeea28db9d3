"""Labelled examples from the sources: balanced, distinct, split by a hash, cached."""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.text import sources
from merge.bundle.files import replaced

PER_TASK = 6000
"""Most texts of a task, the same number of each class."""

SMALLEST_CLASS = 200
TEST_SHARE = 4
"""One text in this many belongs to the test split, by its hash: no seed ever trains on it."""


@dataclass(frozen=True)
class TextTask:
    """A classification task.

    Attributes:
        name: also the expert's.
        request: wordings of a request: format strings with `{}` for the text; the last two are held out from the
            router's training.
    """

    name: str
    request: tuple[str, ...]


@dataclass(frozen=True)
class Labelled:
    """A text and its class."""

    text: str
    label: int


TASKS = (
    TextTask(
        "noun_topic",
        (
            "Which topic does this noun belong to? {}",
            "Give the semantic field of the noun defined as: {}",
            "Topic of a noun meaning {}",
            "Sort this noun's definition into a topic: {}",
            "A noun means '{}'. Its lexical field?",
            "Classify the noun by topic: {}",
            "What is the topic of the noun with the definition {}",
            "Name this noun's field: {}",
        ),
    ),
    TextTask(
        "verb_topic",
        (
            "Which kind of action is this verb? {}",
            "Give the semantic field of the verb defined as: {}",
            "Kind of verb meaning {}",
            "Sort this verb's definition by kind of action: {}",
            "A verb means '{}'. Its kind?",
            "Classify the verb: {}",
            "What kind of verb has the definition {}",
            "Name this verb's kind: {}",
        ),
    ),
    TextTask(
        "part_of_speech",
        (
            "Which part of speech has this definition? {}",
            "Noun, verb, adjective or adverb: {}",
            "Part of speech of the word defined as {}",
            "Tell the word class from the gloss: {}",
            "Is the word that means '{}' a noun, a verb, an adjective or an adverb?",
            "Word class of: {}",
            "What part of speech is defined by {}",
            "Give the word class for this gloss: {}",
        ),
    ),
    TextTask(
        "package_section",
        (
            "Which section of Debian does this package belong to? {}",
            "Debian section for a package described as: {}",
            "Section of the package: {}",
            "File this software package under a section: {}",
            "A package's description is '{}'. Which archive section?",
            "Archive section of this package: {}",
            "In which Debian section is the package {}",
            "Pick the archive section for the package {}",
        ),
    ),
    TextTask(
        "docstring_library",
        (
            "Which Python library is this docstring from? {}",
            "Library of the docstring: {}",
            "Name the Python package documented by: {}",
            "Guess the library from its documentation: {}",
            "The docstring says '{}'. Which library?",
            "Where is this Python documentation from? {}",
            "Which library's docstring is {}",
            "Tell the Python library by this docstring: {}",
        ),
    ),
    TextTask(
        "code_language",
        (
            "Which programming language is this line? {}",
            "Programming language of: {}",
            "Name the language of this code: {}",
            "Guess the language of the source line {}",
            "The code reads '{}'. Which programming language?",
            "What is this line of code written in? {}",
            "In which programming language is the line {}",
            "Tell the language of this code: {}",
        ),
    ),
)


def load_task(name: str, cache: Path) -> tuple[list[Labelled], list[Labelled], list[str]]:
    """A task's texts outside the test split, those in it, and its classes' names; collected on the first call."""
    file = cache / "tasks" / f"{name}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as partial:
            partial.write_text(json.dumps(_balanced(_COLLECT[name](cache))))
    by_class: dict[str, list[str]] = json.loads(file.read_bytes())
    rest: list[Labelled] = []
    test: list[Labelled] = []
    for label, texts in enumerate(by_class.values()):
        for text in texts:
            (test if _digest(text) % TEST_SHARE == 0 else rest).append(Labelled(text, label))
    return _shuffled(rest, name), _shuffled(test, name), list(by_class)


def foreign_texts(count: int, cache: Path) -> list[str]:
    """Texts that belong to no task."""
    found = [text for text in dict.fromkeys(sources.fortunes(cache)) if 30 <= len(text) <= 200]
    return random.Random(0).sample(found, count)


def _balanced(pairs: Iterable[tuple[str, str]]) -> Mapping[str, Sequence[str]]:
    by_class: dict[str, dict[str, None]] = defaultdict(dict)
    seen: dict[str, str] = {}
    for text, label in pairs:
        if seen.setdefault(text, label) == label:
            by_class[label][text] = None
    large = {label: sorted(texts, key=_digest) for label, texts in sorted(by_class.items())}
    kept = {label: texts for label, texts in large.items() if len(texts) >= SMALLEST_CLASS}
    return {label: texts[: PER_TASK // len(kept)] for label, texts in kept.items()}


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _shuffled(items: list[Labelled], seed: str) -> list[Labelled]:
    random.Random(seed).shuffle(items)
    return items


def _glosses(part: str) -> Callable[[Path], Iterable[tuple[str, str]]]:
    return lambda cache: ((gloss, f"{number:02}") for gloss, number in sources.wordnet_glosses(part, cache))


def _parts_of_speech(cache: Path) -> Iterable[tuple[str, str]]:
    for part in ("noun", "verb", "adj", "adv"):
        yield from ((gloss, part) for gloss, _ in sources.wordnet_glosses(part, cache))


_COLLECT: Mapping[str, Callable[[Path], Iterable[tuple[str, str]]]] = {
    "noun_topic": _glosses("noun"),
    "verb_topic": _glosses("verb"),
    "part_of_speech": _parts_of_speech,
    "package_section": lambda _: sources.package_descriptions(),
    "docstring_library": lambda _: sources.docstrings(),
    "code_language": lambda _: sources.code_lines(),
}
