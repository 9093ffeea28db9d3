"""OpenAI's chat objects."""

from collections.abc import Sequence
from typing import Any, ClassVar

from serve.api.choice import Piece
from serve.api.logprobs import TokenRecord, chat_logprobs_object
from serve.api.reply import Reply


class ChatReply(Reply):
    """`chat.completion` and its chunks; the first chunk of each choice says whose message it is."""

    id_prefix: ClassVar = "chatcmpl-"
    whole_object: ClassVar = "chat.completion"
    chunk_object: ClassVar = "chat.completion.chunk"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._begun: set[int] = set()

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, number: int, piece: Piece) -> dict[str, Any]:
        role = {} if number in self._begun else {"role": "assistant"}
        self._begun.add(number)
        return {"delta": {**role, **({"content": piece.text} if piece.text or role else {})}}

    def _logprobs_object(self, records: Sequence[TokenRecord]) -> dict[str, Any]:
        return chat_logprobs_object(self._codec, records)
