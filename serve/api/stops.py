"""Stop strings in a stream of text pieces."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """A stop string was found: the text ends at `end` characters."""

    stop: str
    end: int


class StopSearch:
    """Finds the first of several stop strings to be complete, although each may span pieces. It keeps no state.

    Args:
        stops: the strings, none empty.
        include: whether the text keeps the string that stopped it.
    """

    def __init__(self, stops: Sequence[str], include: bool = False):
        self._stops = tuple(stops)
        self._include = include
        self._longest = max(map(len, self._stops), default=0)
        # With a set, the cost of a token depends on the longest string and not on how many there are.
        self._beginnings = frozenset(stop[:end] for stop in self._stops for end in range(1, len(stop)))

    def find(self, text: str, new: int, start: int = 0) -> Match | None:
        """The first match that ends within the last `new` characters of `text`.

        Args:
            text: everything generated so far.
            new: how many characters at its end were not searched before.
            start: where searching may begin; a match lies wholly after it.
        """
        begin = max(start, len(text) - new - self._longest + 1, 0)
        # The first to be complete wins, as it would if text came one character at a time: where tokens end must not
        # decide where a completion does.
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop, begin)) >= 0]
        if not found:
            return None
        _, at, stop = min(found)
        return Match(stop, at + len(stop) if self._include else at)

    def safe_length(self, text: str, start: int = 0) -> int:
        """How much of `text` may be sent: all but the longest end that could still become a stop string."""
        for begin in range(max(len(text) - self._longest + 1, start, 0), len(text)):
            if text[begin:] in self._beginnings:
                return begin
        return len(text)
