"""Calls as Hermes 2 Pro, Qwen 2.5 and Qwen 3 write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from typing import ClassVar

from serve.api.messages.call_parser import CallParser
from serve.api.messages.events import held_back

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(CallParser):
    """Reads calls between tags, anywhere in the text. A missing end tag is forgiven."""

    markers: ClassVar = (_OPEN, _CLOSE)

    _opened = ""  # a tag and blanks, behind which a call must begin
    _closing = False

    def _step(self) -> bool:
        if self._reader is not None:
            return bool(self._buffer) and self._read_on()
        if self._closing:
            return self._close()
        if self._opened:
            return self._open()
        at = self._buffer.find(_OPEN)
        if at >= 0:
            self._say(self._buffer[:at])
            self._opened, self._buffer = _OPEN, self._buffer[at + len(_OPEN) :]
            return True
        kept = len(self._buffer) - held_back(self._buffer, (_OPEN,))
        self._say(self._buffer[:kept])
        self._buffer = self._buffer[kept:]
        return False

    def _open(self) -> bool:
        rest = self._buffer.lstrip()
        self._opened += self._buffer[: len(self._buffer) - len(rest)]
        self._buffer = rest
        if not rest:
            return False
        opened, self._opened = self._opened, ""
        if rest[0] == "{":
            self._read(opened, tagged=True)
        else:
            self._say(opened)
        return True

    def _close(self) -> bool:
        rest = self._buffer.lstrip()
        if len(rest) < len(_CLOSE) and _CLOSE.startswith(rest):
            return False
        self._closing = False
        if rest.startswith(_CLOSE):
            self._buffer = rest[len(_CLOSE) :]
        return True

    def _end(self) -> None:
        if not self._closing and self._reader is None:  # else it is a tag that was cut, or arguments
            self._say(self._opened + self._buffer)

    def _called(self) -> None:
        self._closing = True

    def _not_called(self) -> None:
        pass
