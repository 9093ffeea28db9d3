"""Reasoning between `<think>` and `</think>` at a reply's beginning, as Qwen 3 and DeepSeek R1 write it."""

from typing import ClassVar

from serve.api.messages.events import held_back

_OPEN, _CLOSE = "<think>", "</think>"


class ThinkingParser:
    """Splits a text that comes in pieces into reasoning and content. Blanks around the tags are left out.

    Args:
        inside: without a tag, the text begins within the reasoning, whose tag stood in the prompt.
    """

    markers: ClassVar = (_OPEN, _CLOSE)

    def __init__(self, inside: bool = False):
        self._buffer = ""
        self._inside = inside
        self._begun = False
        self._blank = True  # nothing but blanks since the last tag
        self._ended = False

    def push(self, text: str) -> tuple[str, str]:
        """Take a piece; (reasoning, content) that are certain by now."""
        if self._ended:
            return "", self._content(text)
        self._buffer += text
        if not self._begun and not self._begin():
            return "", ""
        if not self._inside:
            text, self._buffer, self._ended, self._blank = self._buffer, "", True, False
            return "", text
        at = self._buffer.find(_CLOSE)
        if at < 0:
            return self._reasoning(len(self._buffer) - held_back(self._buffer, (_CLOSE,))), ""
        reasoning = self._reasoning(at)
        rest = self._buffer.lstrip()[len(_CLOSE) :]
        self._buffer, self._ended, self._blank = "", True, True
        return reasoning, self._content(rest)

    def finish(self) -> tuple[str, str]:
        """What was held back at the text's end."""
        rest, self._buffer = self._buffer, ""
        return (rest, "") if self._inside and not self._ended else ("", rest)

    def _begin(self) -> bool:
        """Whether it is known if reasoning comes first."""
        start = self._buffer.lstrip()
        if len(start) < len(_OPEN) and _OPEN.startswith(start):
            return False
        self._begun = True
        if start.startswith(_OPEN):
            self._inside, self._buffer = True, start[len(_OPEN) :]
        return True

    def _reasoning(self, until: int) -> str:
        """Reasoning before `until`; blanks wait for what follows them."""
        text = self._buffer[:until].rstrip()
        self._buffer = self._buffer[len(text) :]
        if self._blank:
            text = text.lstrip()
        self._blank = self._blank and not text
        return text

    def _content(self, text: str) -> str:
        if self._blank:
            text = text.lstrip()
            self._blank = not text
        return text
