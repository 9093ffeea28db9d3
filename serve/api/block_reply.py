"""Replies of the APIs whose messages are made of blocks."""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from serve.api.blocks import Block, BlockEvent, BlockStream
from serve.api.choice import Piece
from serve.api.messages import MessageReader
from serve.api.reply import Reply
from serve.api.schemas.translated import TranslatedRequest

_Asked = TypeVar("_Asked", bound=TranslatedRequest)


class BlockReply(Reply, Generic[_Asked]):
    """A reply of one choice, in blocks.

    Attributes:
        finish_reason: why the text ended, as chats say it; None while it goes on.
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
        """Those begun so far."""
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
