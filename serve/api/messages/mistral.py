"""Calls as Mistral's models write them, and lists of calls, which a grammar makes any model write.

`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name{…}` and `[TOOL_CALLS]name[ARGS]{…}` of newer
models.
"""

import re
from collections.abc import Collection
from typing import ClassVar

from serve.api.messages.call_parser import CallParser

_TAG, _ARGS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAMED = re.compile(r"([^\s\[{]{1,256})(?:\[CALL_ID\][^\[{]{0,64})?(?:\[ARGS\])?\s{0,16}(?=\{)")
_LONGEST_HEAD = 400


class MistralParser(CallParser):
    """Reads calls after the tag, anywhere in the text.

    Args:
        names: as for all parsers.
        opened: the text is a list of calls from its first character on, without a tag.
    """

    markers: ClassVar = (_TAG, _ARGS, _CALL_ID)

    def __init__(self, names: Collection[str] = (), opened: bool = False):
        super().__init__(names)
        self._tag = "" if opened else None

    def _step(self) -> bool:
        if self._reader is not None:
            return bool(self._buffer) and self._read_on()
        if self._listed:
            return self._next_in_list()
        if self._tag is None:
            return self._look_for(_TAG)
        rest = self._behind_tag()
        if not rest:
            return False
        if rest[0] == "[":
            return self._list()
        return self._call() if rest[0] == "{" else self._named(rest)

    def _named(self, rest: str) -> bool:
        """A name, and the arguments alone."""
        head = rest[:_LONGEST_HEAD]
        named = _NAMED.match(head)
        if named is None:
            return self._no_call() if "{" in head or len(rest) >= _LONGEST_HEAD else False
        self._buffer = rest[named.end() :]
        return self._call(named[1], written=named[0])

    def _formal(self) -> bool:
        return self._between_calls()
