"""OpenAI's completion objects."""

from collections.abc import Sequence
from typing import Any, ClassVar

from serve.api.choice import Piece
from serve.api.choices_reply import ChoicesReply
from serve.api.logprobs import TokenRecord, logprobs_object


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
