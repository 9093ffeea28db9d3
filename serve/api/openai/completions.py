"""POST /v1/completions and /v1/chat/completions, and OpenAI's objects for their replies.

Each choice has three fields of this server's own: `expert` names what ran ("backbone", an expert, "a+b" for a mix),
`confidence` is the router's, null if it was not asked, and `stop_reason` is the stop string or token that ended the
text, as vLLM has it.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response

from serve.api.errors import ApiError
from serve.api.generate.answer import answer
from serve.api.generate.reply import Reply
from serve.api.generate.service import Service
from serve.api.messages import CallDelta, MessageReader, call_object
from serve.api.schemas import BodyParser, ChatRequest, CompletionRequest, GenerationRequest, StreamOptions
from serve.api.text.choice import Piece
from serve.api.text.logprobs import TokenRecord, chat_logprobs_object, logprobs_object
from serve.config import ApiSettings


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


class CompletionReply(ChoicesReply):
    """`text_completion`, whole and streamed."""

    id_prefix: ClassVar = "cmpl-"
    whole_object: ClassVar = "text_completion"
    chunk_object: ClassVar = "text_completion"

    def _content(self, number: int, text: str) -> dict[str, Any]:  # noqa: ARG002
        return {"text": text}

    def _delta(self, number: int, piece: Piece) -> dict[str, Any]:  # noqa: ARG002
        return {"text": piece.text}

    def _logprobs_object(self, records: Sequence[TokenRecord]) -> dict[str, Any]:
        return dict(logprobs_object(self._codec, records))


class ChatReply(ChoicesReply):
    """`chat.completion` and its chunks; the first chunk of each choice says whose message it is."""

    id_prefix: ClassVar = "chatcmpl-"
    whole_object: ClassVar = "chat.completion"
    chunk_object: ClassVar = "chat.completion.chunk"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._readers: dict[int, MessageReader] = {}

    def _reader(self, number: int) -> MessageReader:
        if number not in self._readers:
            self._readers[number] = MessageReader(self._job.format)
        return self._readers[number]

    def _content(self, number: int, text: str) -> dict[str, Any]:
        reader = self._reader(number)
        delta = reader.push(text, last=True)
        message: dict[str, Any] = {"role": "assistant", "content": delta.content, "refusal": None}
        if self._job.format.thinking:
            message["reasoning_content"] = delta.reasoning or None
        if reader.calls:
            message["content"] = delta.content or None
            message["tool_calls"] = [call_object(call) for call in reader.calls]
        return {"message": message}

    def _delta(self, number: int, piece: Piece) -> dict[str, Any]:
        begun = number in self._readers
        reader = self._reader(number)
        delta = reader.push(piece.text, last=piece.finish_reason is not None)
        message: dict[str, Any] = {} if begun else {"role": "assistant"}
        if delta.content or not begun:
            message["content"] = delta.content
        if delta.reasoning:
            message["reasoning_content"] = delta.reasoning
        if delta.calls:
            message["tool_calls"] = [_call_part(reader, part) for part in delta.calls]
        return {"delta": message}

    def _finish_reason(self, number: int, reason: str | None) -> str | None:
        """OpenAI's "tool_calls", except for a call that the request named."""
        called = number in self._readers and self._readers[number].calls
        return "tool_calls" if called and reason == "stop" and not self._job.format.named else reason

    def _logprobs_object(self, records: Sequence[TokenRecord]) -> dict[str, Any]:
        return chat_logprobs_object(self._codec, records)


def _call_part(reader: MessageReader, part: CallDelta) -> dict[str, Any]:
    """OpenAI's delta of a call, whose first part has its id, type and name."""
    if part.name is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    call = {"id": reader.calls[part.index].id, "type": "function"}
    return {"index": part.index, **call, "function": {"name": part.name, "arguments": part.arguments}}


def router(service: Service, settings: ApiSettings, bodies: BodyParser) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter()

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        """Continue one or several prompts."""
        return await answer(request, service, settings, bodies, CompletionRequest, CompletionReply)

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        return await answer(request, service, settings, bodies, ChatRequest, ChatReply)

    return routes
