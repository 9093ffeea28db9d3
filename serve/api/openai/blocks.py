"""A reply's message as blocks that follow each other: reasoning, text, and a block for each call."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from serve.api.generate.reply import Reply
from serve.api.messages import MessageDelta, MessageReader, ToolCall
from serve.api.schemas.translated import TranslatedRequest
from serve.api.text.choice import Piece

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


_Asked = TypeVar("_Asked", bound=TranslatedRequest)


class BlockReply(Reply, Generic[_Asked]):
    """A reply of one choice, in blocks.

    Attributes:
        finish_reason: why the text ended, in the words of chats; None before its end.
        stop_reason: what ended it.
    """

    def __init__(self, asked: _Asked, *args: Any, **kwargs: Any):
        super().__init__(asked, *args, **kwargs)
        self._asked = asked
        self._reader = MessageReader(self._job.format)
        self._stream = BlockStream(self._reader.calls)
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None

    @property
    def blocks(self) -> list[Block]:
        """The blocks that have begun."""
        return self._stream.blocks

    def read(self, piece: Piece) -> Iterator[BlockEvent]:
        """The events of a piece."""
        last = piece.finish_reason is not None
        yield from self._stream.push(self._reader.push(piece.text, last))
        if last:
            self.stop_reason = piece.stop_reason
            called = bool(self._reader.calls) and piece.finish_reason == "stop"
            self.finish_reason = "tool_calls" if called else piece.finish_reason
            yield from self._stream.finish()

    def read_all(self, pieces: Sequence[Piece]) -> None:
        """Read all pieces of a reply that is not streamed, as if they were one."""
        text = "".join(piece.text for piece in pieces)
        for _ in self.read(Piece(text, (), pieces[-1].finish_reason, pieces[-1].stop_reason)):
            pass
