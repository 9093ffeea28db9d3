"""One reply's message, from text that comes in pieces: reasoning, tool calls and content."""

import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from serve.api.messages.call_parser import CallParser
from serve.api.messages.call_reader import CallDelta, Event, held_back
from serve.api.messages.dialects import TOOL_PARSERS, MistralParser

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


_LETTERS = string.ascii_letters + string.digits
_MISTRAL_ID = 9
"""Characters of a call's id: Mistral's chat templates refuse others."""


@dataclass(frozen=True)
class MessageFormat:
    """How the replies to one request are read.

    Attributes:
        parser: name of the parser of tool calls; None: there are none.
        names: the tools that may be called.
        forced: a grammar makes the reply a list of calls.
        named: the request named the tool to call.
        several: whether the reply may hold more than one call.
        thinking: whether reasoning is split off.
        inside: the reply begins within the reasoning.
        ignored: the request has tools that the model does not know.
    """

    parser: str | None = None
    names: frozenset[str] = frozenset()
    forced: bool = False
    named: bool = False
    several: bool = True
    thinking: bool = False
    inside: bool = False
    ignored: bool = False

    @property
    def plain(self) -> bool:
        """Whether the text is the content, unchanged."""
        return not (self.parser or self.thinking)

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the parsers must see, although they may be special tokens."""
        calls = TOOL_PARSERS[self.parser].markers if self.parser and not self.forced else ()
        return (*calls, *(ThinkingParser.markers if self.thinking else ()))


@dataclass(frozen=True)
class MessageDelta:
    """What a piece of text adds to the message.

    Attributes:
        content: text to append.
        reasoning: text to append to the reasoning.
        calls: parts of calls.
    """

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


@dataclass
class ToolCall:
    """A call as far as it was written."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class MessageReader:
    """Reads one choice's text.

    Attributes:
        format: how.
        calls: those found so far.
    """

    format: MessageFormat
    calls: list[ToolCall] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = self.format
        self._thinking = ThinkingParser(shape.inside) if shape.thinking else None
        self._calls: CallParser | None = None
        if shape.forced:
            self._calls = MistralParser(opened=True)
        elif shape.parser is not None:
            self._calls = TOOL_PARSERS[shape.parser](shape.names)

    def push(self, text: str, last: bool = False) -> MessageDelta:
        """Take a piece of text, the last of all or not."""
        reasoning, content = ("", text) if self._thinking is None else self._thinking.push(text)
        if last and self._thinking is not None:
            rest = self._thinking.finish()
            reasoning, content = reasoning + rest[0], content + rest[1]
        events: list[Event] = [content] if content else []
        if self._calls is not None:
            events = self._calls.push(content)
            if last:
                events += self._calls.finish()
        if self.format.forced:  # what is not a call is the beginning of one that the length limit cut
            events = [event for event in events if not isinstance(event, str)]
        return MessageDelta("".join(_texts(events)), reasoning, _merged(self._kept(events)))

    def _kept(self, events: Iterable[Event]) -> Iterable[CallDelta]:
        for event in events:
            if isinstance(event, str) or (event.index and not self.format.several):
                continue
            if event.name is not None:
                self.calls.append(ToolCall(_call_id(self.format.parser), event.name))
            self.calls[event.index].arguments += event.arguments
            yield event


def call_object(call: ToolCall) -> dict[str, Any]:
    """OpenAI's object of a call."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _merged(parts: Iterable[CallDelta]) -> tuple[CallDelta, ...]:
    """Parts of one call as one: some clients read only the first part of an event."""
    merged: list[CallDelta] = []
    for part in parts:
        if merged and merged[-1].index == part.index:
            merged[-1] = CallDelta(part.index, merged[-1].name, merged[-1].arguments + part.arguments)
        else:
            merged.append(part)
    return tuple(merged)


def _texts(events: Iterable[Event]) -> Iterable[str]:
    return (event for event in events if isinstance(event, str))


def _call_id(parser: str | None) -> str:
    if parser == "mistral":
        return "".join(secrets.choice(_LETTERS) for _ in range(_MISTRAL_ID))
    return f"call_{secrets.token_hex(12)}"
