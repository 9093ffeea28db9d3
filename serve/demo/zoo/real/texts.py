"""The licensed texts of the tasks that were not generated; `data/LICENCES.md` says whose they are."""

import json
from functools import cache
from pathlib import Path

from serve.demo.zoo.real.task import Content
from serve.demo.zoo.task import Split

DATA = Path(__file__).with_name("data")

_OUTSIDE = 100
"""Requests out of scope that routers do not see in training."""


@cache
def _rows(name: str) -> tuple[tuple[str, ...], ...]:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(tuple(json.loads(line)) for line in lines)


def contents(name: str, split: Split) -> list[Content]:
    """The contents of one split of `data/NAME.jsonl`, whose lines are `[split, text, answer]`."""
    return [Content(text, answer) for of, text, answer in _rows(name) if of == split]


def out_of_scope(split: Split | None = None) -> list[str]:
    """Requests to an assistant that none of the tasks is about (500 of CLINC150's out-of-scope test utterances).

    Args:
        split: the last 400, which routers are trained with, or the first 100; None: all.
    """
    texts = [text for _, text in _rows("out_of_scope")]
    return {"test": texts[:_OUTSIDE], "train": texts[_OUTSIDE:], None: texts}[split]
