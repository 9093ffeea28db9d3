"""What OpenAI's completion and chat objects have in common.

Each choice has three fields of this server's own: `expert` names what ran ("backbone", an expert, "a+b" for a mix),
`confidence` is the router's, null where it was not asked, and `stop_reason` is the stop string or token that ended the
text, as vLLM has it.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from serve.api.choice import Piece
from serve.api.errors import ApiError
from serve.api.logprobs import TokenRecord
from serve.api.reply import Reply
from serve.api.schemas import GenerationRequest, StreamOptions


class ChoicesReply(Reply):
    """A reply of choices."""

    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    named_events: ClassVar = False

    def __init__(self, asked: GenerationRequest, *args: Any, **kwargs: Any):
        super().__init__(asked, *args, **kwargs)
        self._options = asked.stream_options or StreamOptions()

    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """The reply to a plain request, from all pieces of every choice."""
        kept = self._job.best()
        return self._head | {
            "object": self.whole_object,
            "choices": [self._choice(index, number, pieces[number]) for index, number in enumerate(kept)],
            "usage": self.usage(),
        }

    def chunks(self, number: int, piece: Piece) -> Iterator[dict[str, Any]]:
        """One event; its `model` is what runs this choice."""
        chunk = self._head | {
            "object": self.chunk_object,
            "model": self._job.choices[number].target.label,
            "choices": [self._choice_of(number, number, (piece,), self._delta(number, piece))],
        }
        if self._options.include_usage:
            chunk["usage"] = self.usage() if self._options.continuous_usage_stats else None
        yield chunk

    def closing(self) -> Iterator[dict[str, Any]]:
        """The event that `stream_options.include_usage` asks for: no choices, the usage."""
        if self._options.include_usage:
            yield self._head | {"object": self.chunk_object, "choices": [], "usage": self.usage()}

    def failure(self, error: ApiError) -> dict[str, Any]:
        """The error as any reply says it."""
        return error.body()

    def _choice(self, index: int, number: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        return self._choice_of(index, number, pieces, self._content(number, text))

    def _choice_of(self, index: int, number: int, pieces: Sequence[Piece], text: dict[str, Any]) -> dict[str, Any]:
        records = [record for piece in pieces for record in piece.records]
        target = self._job.choices[number].target
        return {
            "index": index,
            "logprobs": self._logprobs_object(records) if self._logprobs else None,
            "finish_reason": self._finish_reason(number, pieces[-1].finish_reason),
            "stop_reason": pieces[-1].stop_reason,
            "expert": target.label,
            "confidence": target.confidence,
            **text,
        }

    def _finish_reason(self, number: int, reason: str | None) -> str | None:  # noqa: ARG002
        """Why a choice ended, as the reply says it."""
        return reason

    @abstractmethod
    def _content(self, number: int, text: str) -> dict[str, Any]:
        """A choice's text."""

    @abstractmethod
    def _delta(self, number: int, piece: Piece) -> dict[str, Any]:
        """A piece of it."""

    @abstractmethod
    def _logprobs_object(self, records: Sequence[TokenRecord]) -> dict[str, Any]:
        """Log-probabilities of tokens."""
