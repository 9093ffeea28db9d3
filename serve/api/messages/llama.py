"""Calls as Llama 3.1 to 3.3 write them: the reply is `{"name": …, "parameters": {…}}`, several with `;` between."""

import re
from typing import ClassVar

from serve.api.messages.call_parser import CallParser

_TAG = "<|python_tag|>"
_BEFORE = re.compile(r"\s*")
_BETWEEN = re.compile(r"\s*(?:;\s*)?")


class LlamaParser(CallParser):
    """Reads calls at the text's beginning, without a tag, and after `<|python_tag|>`.

    Without a tag, only an object that names one of the request's tools is a call.
    """

    markers: ClassVar = (_TAG,)

    _may_begin = True  # a call may begin here without a tag

    def _step(self) -> bool:
        if self._reader is not None:
            return bool(self._buffer) and self._read_on()
        if self._tag is not None:
            rest = self._behind_tag()
            if not rest:
                return False
            return self._call() if rest[0] == "{" else self._no_call()
        return self._beginning() if self._may_begin else self._look_for(_TAG)

    def _beginning(self) -> bool:
        blanks = (_BETWEEN if self.calls else _BEFORE).match(self._buffer)
        opening = blanks[0] if blanks else ""
        rest = self._buffer[len(opening) :]
        if not rest:
            return False
        self._may_begin = False
        if rest[0] == "{":
            self._buffer = rest
            self._read(opening, tagged=False)
        return True

    def _formal(self) -> bool:
        return bool(self.calls) and self._tag is None and _BETWEEN.fullmatch(self._buffer) is not None

    def _called(self) -> None:
        self._may_begin = True

    def _not_called(self) -> None:
        # The object's own bracket is text, too: it must not be taken for a beginning again.
        self._say(self._buffer[:1])
        self._buffer = self._buffer[1:]
