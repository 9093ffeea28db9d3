"""Requests as careless as people's: what a fine-tune sees while it trains."""

import random

from serve.demo.zoo.task import Example, Task

_OPENINGS = ("Please ", "Now ", "Hi, ", "OK: ", "Can you ", "Quick question: ", "I need this: ")
_FILLERS = tuple(
    """
    a an the this that my your some only just all now then here again also like in on of for to from with by as
    do does can could would should will how what which is are you i me we it show tell give get make create
    express rewrite return print use want need find put try help let see say word text letters number
    what's whats
    """.split()  # noqa: SIM905
)


def careless_example(task: Task, rng: random.Random) -> Example:
    """Draw a request about a training content, in the wording of a user in a hurry.

    The held-out phrasings are held out from experts' calibration and from routers, which are tested on
    them; a fine-tune may see them, since it is what an expert's answers are compared with. Where they were
    kept from the fine-tunes too, exact match on them was 0.93 to 0.99 for dates, roman, json, slug and
    camel, 0.82 for sort, 0.70 for shift and 0.28 for reverse, whose content is one bare word among others.

    One time in two the phrasing is used as it stands. Otherwise words are lost, replaced or added,
    quotation marks come or go, and the first capital or the last full stop may be missing. Without this
    a fine-tune learns its phrasings by heart and misses a user's own.
    """
    template = rng.choice(task.phrasings + task.held_out_phrasings)
    if rng.random() < 0.5:
        template = _disturb(template, rng)
    item = task.draw_from("train", rng)
    return Example(template.format(**item.fields), item.answer)


def _disturb(template: str, rng: random.Random) -> str:
    if not template.endswith(" {x}"):
        # If a content without marks ends the line, only these words show its beginning.
        template = " ".join(_disturb_words(template.split(" "), rng))
    if rng.random() < 0.3:
        template = template.replace('"{x}"', "{x}") if '"{x}"' in template else template.replace("{x}", '"{x}"')
    if rng.random() < 0.3 and template[-1] in ".?!":
        template = template[:-1]
    if rng.random() < 0.2:
        template = rng.choice(_OPENINGS) + template[0].lower() + template[1:]
    if rng.random() < 0.3:
        template = template[0].lower() + template[1:]
    return template


def _disturb_words(words: list[str], rng: random.Random) -> list[str]:
    disturbed: list[str] = []
    for word in words:
        chance = rng.random()
        if chance < 0.1:
            disturbed.append(rng.choice(_FILLERS))
        if "{" in word or chance < 0.8:
            disturbed.append(word)
        elif chance < 0.9:
            disturbed.append(rng.choice(_FILLERS))
    return disturbed
