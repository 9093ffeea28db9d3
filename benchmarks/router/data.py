"""Labelled text for the router: which prompts it is trained on, which it is asked, and which belong to no expert."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.router.chats import make_chats

TYPO_SHARE = 0.1
"""Share of the letters that a typo hits: one of ten, which is a typo in every other word."""

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
        foreign: prompts that belong to no expert; empty where the data has none.
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
    """All data by name: clinc-domains, clinc-intents, banking77, real-tasks, typos and chats.

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
        ]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{directory} does not hold the expected data: {type(error).__name__}: {error}") from error
    return {item.name: item for item in found}


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


def _real_tasks(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    def part(split: str) -> list[Labelled]:
        return [(row["text"], row["task"]) for row in rows if row["split"] == split and row["task"] is not None]

    foreign = [row["text"] for row in rows if row["split"] == "test" and row["task"] is None]
    return _dataset("real-tasks", part("train"), part("test"), foreign)
