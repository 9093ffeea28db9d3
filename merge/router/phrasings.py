"""Grouping prompts that are worded alike.

A prompt is a phrasing with content filled in. A router that has seen a phrasing once knows it, so a fair held-out score
needs whole phrasings held out, and prompts do not say which phrasing they came from.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

SHARED = 0.05
"""Share of a task's prompts that have to go on with the same word for it to count as wording."""

Words = tuple[str, ...]

_DIGIT = re.compile(r"\d")


def phrasing_keys(prompts: Sequence[str]) -> list[tuple[Words, Words]]:
    """The wording at the beginning and at the end of each prompt of one task, around its content.

    Only the ends are compared, not all words that are frequent in the task: content that is ordinary text shares `the`
    and `of` with every prompt, and then hardly two prompts have the same frequent words. All digits are one digit here,
    as they are to the router.
    """
    words = [tuple(_DIGIT.sub("0", prompt.lower()).split()) for prompt in prompts]
    least = max(2.0, SHARED * len(prompts))
    endings = _common_starts([row[::-1] for row in words], least)
    return list(zip(_common_starts(words, least), [row[::-1] for row in endings], strict=True))


def assign_folds(prompts: Sequence[str], folds: int) -> list[int]:
    """Fold of each prompt of one task: one wording, one fold; folds as equal as the wordings allow.

    There are at most as many folds as wordings. Where all prompts are worded alike they are dealt out one by one:
    nothing better can be had then.
    """
    keys = phrasing_keys(prompts)
    sizes = Counter(keys)
    if len(sizes) == 1:
        return [i % folds for i in range(len(prompts))]
    filled = [0] * min(folds, len(sizes))
    fold_of: dict[tuple[Words, Words], int] = {}
    for key, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        fold_of[key] = filled.index(min(filled))
        filled[fold_of[key]] += size
    return [fold_of[key] for key in keys]


def _common_starts(rows: Sequence[Words], least: float) -> list[Words]:
    """The first words of each row that are wording.

    A start continues as wording while most rows that have it continue with a word that `least` of them share. If most
    continue with different words, content has begun, even if some contents begin alike.
    """
    having = Counter(row[:length] for row in rows for length in range(len(row) + 1))
    shared: dict[Words, int] = defaultdict(int)
    for start, count in having.items():
        if start and count >= least:
            shared[start[:-1]] += count
    return [_descend(row, having, shared, least) for row in rows]


def _descend(row: Words, having: Counter[Words], shared: dict[Words, int], least: float) -> Words:
    length = 0
    while (
        length < len(row)
        and having[row[: length + 1]] >= least
        and 2 * shared.get(row[:length], 0) > having[row[:length]]
    ):
        length += 1
    return row[:length]
