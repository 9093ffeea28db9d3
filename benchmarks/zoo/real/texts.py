"""The licensed texts of the tasks that were not generated; `data/LICENCES.md` says whose they are."""

import json
from functools import cache
from pathlib import Path

from benchmarks.zoo.real.task import Content
from benchmarks.zoo.task import Split

DATA = Path(__file__).with_name("data")


@cache
def _rows(name: str) -> tuple[tuple[str, ...], ...]:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(tuple(json.loads(line)) for line in lines)


def contents(name: str, split: Split) -> list[Content]:
    """The contents of one split of `data/NAME.jsonl`, whose lines are `[split, text, answer]`."""
    return [Content(text, answer) for of, text, answer in _rows(name) if of == split]


def out_of_scope() -> list[str]:
    """500 requests to an assistant that none of the tasks is about (CLINC150's out-of-scope test utterances)."""
    return [text for _, text in _rows("out_of_scope")]
