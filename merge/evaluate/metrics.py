"""Ways to compare a reply with the right answer."""

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping

Metric = Callable[[str, str], float]
"""(reply, answer) → how right the reply is, 0 to 1; only `overlap` gives anything between."""


def exact(reply: str, answer: str) -> bool:
    """The same text, except for white space around it."""
    return reply.strip() == answer.strip()


def normalized(reply: str, answer: str) -> bool:
    """The same words: capitals, punctuation, articles and white space do not count, as in SQuAD's evaluation."""
    return _words(reply) == _words(answer)


def contains(reply: str, answer: str) -> bool:
    """The answer's words stand in the reply, one after the other; compared as `normalized` compares."""
    return f" {' '.join(_words(answer))} " in f" {' '.join(_words(reply))} "


def regex(reply: str, answer: str) -> bool:
    """The answer is a regular expression (Python's) that is found in the reply.

    Raises:
        ValueError: it is not a valid one.
    """
    try:
        return re.search(answer, reply.strip()) is not None
    except re.error as error:
        raise ValueError(f"{answer!r} is not a valid regular expression: {error}") from error


def same_json(reply: str, answer: str) -> bool:
    """The same JSON value: order of keys and white space do not count. A code fence around the reply is taken off.

    Raises:
        ValueError: the answer is not valid JSON.
    """
    try:
        wanted = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"the answer {answer!r} is not valid JSON: {error}") from error
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", reply.strip(), re.DOTALL)
    try:
        return bool(json.loads(fenced[1] if fenced else reply) == wanted)
    except (ValueError, RecursionError):
        return False


def number(reply: str, answer: str) -> bool:
    """The reply's last number is the answer's last one, as in GSM8K's evaluation; commas between thousands are skipped.

    Raises:
        ValueError: the answer has no number.
    """
    wanted = _NUMBER.findall(answer)
    if not wanted:
        raise ValueError(f"the answer {answer!r} has no number")
    found = _NUMBER.findall(reply)
    return bool(found) and _value(found[-1]) == _value(wanted[-1])


def choice(reply: str, answer: str) -> bool:
    """The first letter that stands alone in the reply, as in "B", "(b)" or "B. Paris", is the answer's."""
    found, wanted = _LETTER.search(reply), _LETTER.search(answer)
    if wanted is None:
        raise ValueError(f"the answer {answer!r} has no letter that stands alone, as in 'B'")
    return found is not None and found[0].upper() == wanted[0].upper()


def overlap(reply: str, answer: str) -> float:
    """F1 of the words, as in SQuAD's evaluation, but capitals and punctuation count."""
    found, wanted = Counter(reply.split()), Counter(answer.split())
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (found & wanted).total() / (found.total() + wanted.total())


METRICS: Mapping[str, Metric] = {
    "exact": exact,
    "normalized": normalized,
    "contains": contains,
    "regex": regex,
    "json": same_json,
    "number": number,
    "choice": choice,
    "overlap": overlap,
}

_NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})+|\d+)(?:\.\d+)?")
_LETTER = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z'’])")
_ARTICLES = frozenset({"a", "an", "the"})


def _words(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in plain.split() if word not in _ARTICLES]


def _value(written: str) -> float:
    return float(written.replace(",", ""))
