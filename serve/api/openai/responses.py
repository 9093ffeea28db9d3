"""POST /v1/responses: OpenAI's response objects, and the events of a streamed response."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response

from serve.api.errors import ApiError
from serve.api.generate.answer import answer
from serve.api.generate.service import Service
from serve.api.openai.blocks import Block, BlockEvent, BlockReply
from serve.api.schemas import BodyParser, ResponseRequest
from serve.api.text.choice import Piece
from serve.api.text.logprobs import TokenRecord, chat_logprobs_object
from serve.config import ApiSettings


class ResponseReply(BlockReply[ResponseRequest]):
    """`response`, and its events with their sequence numbers."""

    id_prefix: ClassVar = "resp_"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._number = 0
        self._records: list[dict[str, Any]] = []
        self._unsent: list[dict[str, Any]] = []  # records whose text a parser may still hold back

    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """The response, from all pieces."""
        self.read_all(pieces[0])
        self._note(pieces[0])
        return self._response()

    def opening(self) -> Iterator[dict[str, Any]]:
        """The events before the first token."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response())

    def chunks(self, number: int, piece: Piece) -> Iterator[dict[str, Any]]:  # noqa: ARG002
        """The events of a piece."""
        self._note([piece])
        for event in self.read(piece):
            yield from self._events(event)

    def closing(self) -> Iterator[dict[str, Any]]:
        """The finished response."""
        yield self._event(f"response.{self._status}", response=self._response())

    def failure(self, error: ApiError) -> dict[str, Any]:
        """An error as the last event."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    @property
    def _status(self) -> str:
        return {None: "in_progress", "length": "incomplete"}.get(self.finish_reason, "completed")

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _events(self, event: BlockEvent) -> Iterator[dict[str, Any]]:
        block = event.block
        item = {"item_id": _item_id(block), "output_index": block.index}
        place = item if block.kind == "call" else {**item, "content_index": 0}
        if event.step == "start":
            yield self._event("response.output_item.added", output_index=block.index, item=_item(block, "in_progress"))
            if block.kind != "call":
                yield self._event("response.content_part.added", **place, part=_part(block))
        elif event.step == "delta":
            records: dict[str, Any] = {}
            if block.kind == "text":
                records["logprobs"], self._unsent = self._unsent, []
            yield self._event(f"response.{_WORDS[block.kind]}.delta", **place, delta=event.text, **records)
        else:
            said: dict[str, Any] = {"arguments": block.text} if block.kind == "call" else {"text": block.text}
            if block.kind == "text":
                said["logprobs"] = self._records
            yield self._event(f"response.{_WORDS[block.kind]}.done", **place, **said)
            if block.kind != "call":
                yield self._event("response.content_part.done", **place, part=_part(block, self._records))
            yield self._event("response.output_item.done", output_index=block.index, item=self._item(block))

    def _item(self, block: Block) -> dict[str, Any]:
        cut = self.finish_reason == "length" and block is self.blocks[-1]
        return _item(block, "incomplete" if cut else "completed", self._records)

    def _response(self) -> dict[str, Any]:
        asked, params, ended = self._asked, self._job.choices[0].request.params, self.finish_reason is not None
        fields = asked.model_dump(include=_ECHOED, by_alias=True, exclude_none=True)
        target = self._job.choices[0].target
        return {
            "id": self._head["id"],
            "object": "response",
            "created_at": self._head["created"],
            "status": self._status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": fields.get("metadata", {}),
            "model": self._head["model"],
            "output": [self._item(block) for block in self.blocks] if ended else [],
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **fields.get("reasoning", {})},
            "store": False,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"}, **fields.get("text", {})},
            "tool_choice": fields.get("tool_choice", "auto"),
            "tools": [{"parameters": None, "strict": None, **tool} for tool in fields.get("tools", [])],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": self._response_usage() if ended else None,
            "user": asked.user,
            "system_fingerprint": self._head["system_fingerprint"],
            "expert": target.label,
            "confidence": target.confidence,
        }

    def _response_usage(self) -> dict[str, Any]:
        usage = self.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }

    def _note(self, pieces: Sequence[Piece]) -> None:
        if self._logprobs:
            tokens: list[TokenRecord] = [record for piece in pieces for record in piece.records]
            found: list[dict[str, Any]] = chat_logprobs_object(self._codec, tokens)["content"]  # type: ignore[assignment]
            self._records += found
            self._unsent += found


_ECHOED = {"metadata", "reasoning", "text", "tool_choice", "tools"}
_WORDS = {"text": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}
_IDS = {"text": "msg", "reasoning": "rs", "call": "fc"}


def _item_id(block: Block) -> str:
    return f"{_IDS[block.kind]}_{block.key}"


def _part(block: Block, records: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": list(records)}


def _item(block: Block, status: str, records: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    item = {"id": _item_id(block), "status": status}
    if block.call is not None:
        called = {"call_id": block.call.id, "name": block.call.name, "arguments": block.text}
        return {"type": "function_call", **item, **called}
    parts = [] if status == "in_progress" else [_part(block, records)]
    if block.kind == "reasoning":
        return {"type": "reasoning", **item, "summary": [], "content": parts}
    return {"type": "message", **item, "role": "assistant", "content": parts}


def router(service: Service, settings: ApiSettings, bodies: BodyParser) -> APIRouter:
    """The route over a service."""
    routes = APIRouter()

    @routes.post("/v1/responses")
    async def responses(request: Request) -> Response:
        """Answer a conversation."""
        return await answer(request, service, settings, bodies, ResponseRequest, ResponseReply)

    return routes
