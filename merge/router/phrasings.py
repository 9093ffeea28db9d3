"""Grouping prompts that are worded alike.

A prompt is a phrasing with content filled in. A router that has seen a phrasing once knows it, so a fair held-out score
needs whole phrasings held out, and prompts do not say which phrasing they came from.
"""

from collections import Counter
from collections.abc import Sequence

FREQUENT = 0.1


def phrasing_keys(prompts: Sequence[str]) -> list[tuple[str, ...]]:
    """A key for each prompt of one task: those of its words that a tenth of the task's prompts share, in order.

    Content varies from prompt to prompt and drops out; what stays is the wording around it.
    """
    words = [tuple(prompt.lower().split()) for prompt in prompts]
    seen_in = Counter(word for prompt in words for word in set(prompt))
    least = max(2.0, FREQUENT * len(prompts))
    return [tuple(word for word in prompt if seen_in[word] >= least) for prompt in words]


def assign_folds(prompts: Sequence[str], folds: int) -> list[int]:
    """Fold of each prompt of one task, 0 to folds - 1: one wording, one fold; folds as equal as the wordings allow.

    Where there are fewer wordings than folds, prompts are dealt out one by one: nothing better can be had then.
    """
    keys = phrasing_keys(prompts)
    sizes = Counter(keys)
    if len(sizes) < folds:
        return [i % folds for i in range(len(prompts))]
    filled = [0] * folds
    fold_of: dict[tuple[str, ...], int] = {}
    for key, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        fold_of[key] = filled.index(min(filled))
        filled[fold_of[key]] += size
    return [fold_of[key] for key in keys]
