"""Requests as careless as people's: what a fine-tune sees while it trains."""

import random

from benchmarks.zoo.task import Example, Task

_OPENINGS = ("Please ", "please ", "Now ", "Hi, ", "OK: ", "Can you ", "Quick question: ")


def careless_example(task: Task, rng: random.Random) -> Example:
    """Draw a request about a training content in a training phrasing, as somebody in a hurry types it.

    One time in two the phrasing is used as it stands. Otherwise quotation marks come or go, the first
    capital and the last full stop may be missing, a word may be lost or an opening added. Without this a
    fine-tune learns its phrasings by heart and misses rewordings.
    """
    template = rng.choice(task.phrasings)
    if rng.random() < 0.5:
        template = _disturb(template, rng)
    item = task.draw_from("train", rng)
    return Example(template.format(**item.fields), item.answer)


def _disturb(template: str, rng: random.Random) -> str:
    if rng.random() < 0.3:
        template = template.replace('"{x}"', "{x}") if '"{x}"' in template else template.replace("{x}", '"{x}"')
    if rng.random() < 0.4:
        words = template.split(" ")
        losable = [i for i, word in enumerate(words) if "{" not in word]
        if len(losable) > 1:
            del words[rng.choice(losable)]
        template = " ".join(words)
    if rng.random() < 0.3 and template[-1] in ".?!":
        template = template[:-1]
    if rng.random() < 0.3:
        template = template[0].lower() + template[1:]
    if rng.random() < 0.2:
        template = rng.choice(_OPENINGS) + template[0].lower() + template[1:]
    return template
