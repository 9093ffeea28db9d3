"""A reply's message as blocks that follow each other: reasoning, text, and a block for each call."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from serve.api.messages import MessageDelta, ToolCall

Kind = Literal["reasoning", "text", "call"]


@dataclass
class Block:
    """One block.

    Attributes:
        kind: what it is.
        index: its number in the message.
        key: a random part for its id.
        text: its text, or a call's arguments, so far.
        call: the call.
    """

    kind: Kind
    index: int
    key: str = field(default_factory=lambda: secrets.token_hex(12))
    text: str = ""
    call: ToolCall | None = None


@dataclass(frozen=True)
class BlockEvent:
    """A block begins, grows by a text, or ends."""

    step: Literal["start", "delta", "stop"]
    block: Block
    text: str = ""


class BlockStream:
    """Turns what a message reader finds into blocks, one open at a time.

    Attributes:
        blocks: those begun so far.
    """

    def __init__(self, calls: list[ToolCall]):
        self._calls = calls
        self._open: Block | None = None
        self.blocks: list[Block] = []

    def push(self, delta: MessageDelta) -> Iterator[BlockEvent]:
        """The events of a part of the message."""
        if delta.reasoning:
            yield from self._grow("reasoning", delta.reasoning)
        if delta.content:
            yield from self._grow("text", delta.content)
        for part in delta.calls:
            if part.name is not None:
                yield from self._begin("call", self._calls[part.index])
            if part.arguments:
                yield from self._grow("call", part.arguments)

    def finish(self) -> Iterator[BlockEvent]:
        """The end of the last block; a message without any has an empty text."""
        if not self.blocks:
            yield from self._begin("text")
        if self._open is not None:
            block, self._open = self._open, None
            yield BlockEvent("stop", block)

    def _begin(self, kind: Kind, call: ToolCall | None = None) -> Iterator[BlockEvent]:
        if self._open is not None:
            yield BlockEvent("stop", self._open)
        self._open = Block(kind, len(self.blocks), call=call)
        self.blocks.append(self._open)
        yield BlockEvent("start", self._open)

    def _grow(self, kind: Kind, text: str) -> Iterator[BlockEvent]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        assert self._open is not None
        self._open.text += text
        yield BlockEvent("delta", self._open, text)
