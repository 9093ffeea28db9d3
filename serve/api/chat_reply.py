"""OpenAI's chat objects."""

from collections.abc import Sequence
from typing import Any, ClassVar

from serve.api.choice import Piece
from serve.api.choices_reply import ChoicesReply
from serve.api.logprobs import TokenRecord, chat_logprobs_object
from serve.api.messages import CallDelta, MessageReader, call_object


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
        """OpenAI's "tool_calls", but for a call that the request named."""
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
