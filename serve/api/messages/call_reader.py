"""One tool call in JSON, read while it is written, and what parsers make of text."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CallDelta:
    """A part of a call.

    Attributes:
        index: the call's number within the message.
        name: the tool's, on the call's first part.
        arguments: JSON text to append to the call's arguments.
    """

    index: int
    name: str | None = None
    arguments: str = ""


Event = str | CallDelta
"""A piece of content, or a part of a call."""


def held_back(text: str, tags: Sequence[str]) -> int:
    """Characters at the end of `text` that may be the beginning of a tag."""
    most = min(max(map(len, tags), default=1) - 1, len(text))
    return next((size for size in range(most, 0, -1) if any(tag.startswith(text[-size:]) for tag in tags)), 0)


_TEXT = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(
    rf'\{{\s*(?:"(?:type|id)"\s*:\s*{_TEXT}\s*,\s*)*"name"\s*:\s*({_TEXT})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)',
    re.DOTALL,
)
_FIRST_KEY = re.compile(r'\{\s*(?:("(?:[^"\\]|\\.)*")|[^"\s])', re.DOTALL)
_KEYS = frozenset(("arguments", "function", "id", "name", "parameters", "type"))

Begin = Callable[[str], bool]
Argue = Callable[[str], None]


class CallReader:
    """Reads `{"name": …, "arguments": {…}}`, and gives the arguments away as they come.

    A call whose keys come in another order is read at its end. `parameters` is another name of `arguments`.

    Args:
        begin: called with the tool's name; whether there may be a call of it.
        argue: called with pieces of the arguments.
        name: the tool's, if it was written before; then the object is the arguments alone.

    Attributes:
        raw: all that was read.
        begun: whether `begin` was called, and agreed.
        finished: the object has ended, and was a call.
        failed: it is not a call.
    """

    def __init__(self, begin: Begin, argue: Argue, name: str | None = None):
        self._begin, self._argue = begin, argue
        self._depth = 0
        self._string = self._escape = False
        self._level = 1  # of what is around the arguments
        self._from: int | None = None
        self._sent = 0
        self._closed: list[int] = []
        self.raw = ""
        self.begun = self.finished = self.failed = False
        if name is not None:
            self._level, self._from = 0, 0
            self.begun = begin(name)
            self.failed = not self.begun

    def push(self, text: str) -> str:
        """Read on; the text after the object's end. The first character of all must be `{`."""
        end = self._scan(text)
        self.raw += text[:end]
        if not self.begun and not self.failed:
            self._look()
        if self.begun:
            self._pass_on()
        if self._depth == 0 and not self.failed:
            if not self.begun:
                self._whole()
            self.finished = self.begun
            self.failed = not self.begun
        return text[end:]

    def _scan(self, text: str) -> int:
        """Where the object ends within `text`, or the text's length."""
        offset = len(self.raw)
        for position, character in enumerate(text, 1):
            if self._escape:
                self._escape = False
            elif self._string:
                self._escape = character == "\\"
                self._string = character != '"'
            elif character == '"':
                self._string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == self._level:
                    self._closed.append(offset + position)
                if self._depth == 0:
                    return position
        return len(text)

    def _look(self) -> None:
        if (found := _HEAD.match(self.raw)) is not None:
            self.begun = self._agreed(found[1])
            self.failed = not self.begun
            self._from = self._sent = found.end()
        elif (first := _FIRST_KEY.match(self.raw)) is not None:
            self.failed = first[1] is None or _parsed(first[1]) not in _KEYS

    def _agreed(self, quoted: str) -> bool:
        name = _parsed(quoted)
        return isinstance(name, str) and self._begin(name)

    def _pass_on(self) -> None:
        if self._from is None:
            return
        ends = [end for end in self._closed if end > self._from]
        until = ends[0] if ends else len(self.raw)
        if until > self._sent:
            self._argue(self.raw[self._sent : until])
            self._sent = until

    def _whole(self) -> None:
        call: Any = _parsed(self.raw)
        if isinstance(call, dict) and isinstance(call.get("function"), dict):
            call = call["function"]
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _parsed(arguments)
        if isinstance(arguments, dict) and self._begin(call["name"]):
            self.begun = True
            self._argue(json.dumps(arguments, ensure_ascii=False))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
