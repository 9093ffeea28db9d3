"""Calls as Mistral's models write them, and lists of calls, which a grammar makes any model write.

`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name{…}` and `[TOOL_CALLS]name[ARGS]{…}` of newer
models.
"""

import re
from typing import ClassVar

from serve.api.messages.call_parser import CallParser
from serve.api.messages.events import held_back

_TAG, _ARGS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAMED = re.compile(r"([^\s\[{]{1,256})(?:\[CALL_ID\][^\[{]{0,64})?(?:\[ARGS\])?\s{0,16}(?=\{)")
_LONGEST_HEAD = 400
_BETWEEN = re.compile(r"[\s,]*")


class MistralParser(CallParser):
    """Reads calls after the tag, anywhere in the text.

    Args:
        names: as for all parsers.
        opened: the text is a list of calls from its first character on, without a tag.
    """

    markers: ClassVar = (_TAG, _ARGS, _CALL_ID)

    def __init__(self, names: tuple[str, ...] | frozenset[str] = (), opened: bool = False):
        super().__init__(names)
        self._tag: str | None = "" if opened else None  # and blanks, behind which calls must begin
        self._listed = False

    def _step(self) -> bool:
        if self._reader is not None:
            return bool(self._buffer) and self._read_on()
        if self._tag is not None:
            return self._after_tag(self._tag)
        if self._listed:
            return self._next()
        at = self._buffer.find(_TAG)
        if at >= 0:
            self._say(self._buffer[:at])
            self._tag, self._buffer = _TAG, self._buffer[at + len(_TAG) :]
            return True
        kept = len(self._buffer) - held_back(self._buffer, (_TAG,))
        self._say(self._buffer[:kept])
        self._buffer = self._buffer[kept:]
        return False

    def _after_tag(self, tag: str) -> bool:
        rest = self._buffer.lstrip()
        tag += self._buffer[: len(self._buffer) - len(rest)]
        self._tag, self._buffer = tag, rest
        if not rest:
            return False
        if rest[0] == "[":
            return self._list(tag)
        if rest[0] == "{":
            self._tag = None
            self._read(tag, tagged=True)
            return True
        head = rest[:_LONGEST_HEAD]
        named = _NAMED.match(head)
        if named is None and "{" not in head and len(rest) < _LONGEST_HEAD:
            return False
        self._tag = None
        if named is None:
            self._say(tag)
            return True
        self._buffer = rest[named.end() :]
        self._read(tag + named[0], tagged=True, name=named[1])
        return True

    def _list(self, tag: str) -> bool:
        """A bracket behind the tag: calls must follow."""
        inner = self._buffer[1:].lstrip()
        if not inner:
            return False
        self._tag = None
        if inner[0] != "{":
            self._say(tag)
            return True
        opening = self._buffer[: len(self._buffer) - len(inner)]
        self._buffer, self._listed = inner, True
        self._read(tag + opening, tagged=True)
        return True

    def _next(self) -> bool:
        between = _BETWEEN.match(self._buffer)
        opening = between[0] if between else ""
        rest = self._buffer[len(opening) :]
        if not rest:
            return False
        if rest[0] == "{":
            self._buffer = rest
            self._read(opening, tagged=True)
        else:
            self._listed = False
            self._buffer = rest[1:] if rest[0] == "]" else self._buffer
        return True

    def _end(self) -> None:
        if self._reader is None and not (self._listed and _BETWEEN.fullmatch(self._buffer)):
            self._say((self._tag or "") + self._buffer)

    def _called(self) -> None:
        pass

    def _not_called(self) -> None:
        self._listed = False
