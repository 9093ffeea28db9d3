"""Calls as Llama 3.1 to 3.3 write them: the reply is `{"name": …, "parameters": {…}}`, several with `;` between."""

import re
from typing import ClassVar

from serve.api.messages.call_parser import CallParser
from serve.api.messages.events import held_back

_TAG = "<|python_tag|>"
_BETWEEN = re.compile(r"\s*(?:;\s*)?")


class LlamaParser(CallParser):
    """Reads calls at the text's beginning, without a tag, and after `<|python_tag|>`.

    Without a tag, only an object that names one of the request's tools is a call.
    """

    markers: ClassVar = (_TAG,)

    _may_begin = True  # a call may begin here without a tag
    _tag = ""  # a tag and blanks, behind which a call must begin

    def _step(self) -> bool:
        if self._reader is not None:
            return bool(self._buffer) and self._read_on()
        if self._tag:
            return self._after_tag()
        if self._may_begin:
            return self._beginning()
        at = self._buffer.find(_TAG)
        if at >= 0:
            self._say(self._buffer[:at])
            self._tag, self._buffer = _TAG, self._buffer[at + len(_TAG) :]
            return True
        kept = len(self._buffer) - held_back(self._buffer, (_TAG,))
        self._say(self._buffer[:kept])
        self._buffer = self._buffer[kept:]
        return False

    def _beginning(self) -> bool:
        between = _BETWEEN.match(self._buffer) if self.calls else re.match(r"\s*", self._buffer)
        opening = between[0] if between else ""
        rest = self._buffer[len(opening) :]
        if not rest:
            return False
        self._may_begin = False
        if rest[0] == "{":
            self._buffer = rest
            self._read(opening, tagged=False)
        return True

    def _after_tag(self) -> bool:
        rest = self._buffer.lstrip()
        self._tag += self._buffer[: len(self._buffer) - len(rest)]
        self._buffer = rest
        if not rest:
            return False
        tag, self._tag = self._tag, ""
        if rest[0] == "{":
            self._read(tag, tagged=True)
        else:
            self._say(tag)
        return True

    def _end(self) -> None:
        if self._reader is None and not (self.calls and _BETWEEN.fullmatch(self._buffer)):
            self._say(self._tag + self._buffer)

    def _called(self) -> None:
        self._may_begin = True

    def _not_called(self) -> None:
        # The object's own bracket is text, too: it must not be taken for a beginning again.
        self._say(self._buffer[:1])
        self._buffer = self._buffer[1:]
