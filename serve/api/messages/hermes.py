"""Calls as Hermes 2 Pro, Qwen 2.5 and Qwen 3 write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from typing import ClassVar

from serve.api.messages.call_parser import CallParser

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(CallParser):
    """Reads calls between tags, anywhere in the text.

    A missing end tag is forgiven, and a list of calls between the tags is read, as SmolLM 2 writes it.
    """

    markers: ClassVar = (_OPEN, _CLOSE)

    _closing = False

    def _step(self) -> bool:
        if self._reader is not None:
            return bool(self._buffer) and self._read_on()
        if self._listed:
            return self._next_in_list()
        if self._closing:
            return self._close()
        return self._look_for(_OPEN) if self._tag is None else self._open()

    def _open(self) -> bool:
        rest = self._behind_tag()
        if not rest:
            return False
        if rest[0] == "[":
            return self._list()
        return self._call() if rest[0] == "{" else self._no_call()

    def _close(self) -> bool:
        rest = self._buffer.lstrip()
        if len(rest) < len(_CLOSE) and _CLOSE.startswith(rest):
            return False
        self._closing = False
        if rest.startswith(_CLOSE):
            self._buffer = rest[len(_CLOSE) :]
        return True

    def _formal(self) -> bool:
        return self._between_calls() or (self._closing and not self._listed)

    def _called(self) -> None:
        self._closing = True

    def _not_called(self) -> None:
        self._closing = False
