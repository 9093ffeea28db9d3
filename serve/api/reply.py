"""What a client gets for a job: what OpenAI's completion and chat objects have in common.

Each choice has three fields of this server's own: `expert` names what ran ("backbone", an expert, "a+b" for a mix),
`confidence` is the router's, null where it was not asked, and `stop_reason` is the stop string or token that ended the
text, as vLLM has it.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from serve.api.choice import Piece
from serve.api.logprobs import TokenRecord
from serve.api.prepare import Job
from serve.api.text import TextCodec


class Reply(ABC):
    """Builds the reply to one job.

    Args:
        job: the job, which counts its tokens while it runs.
        codec: the tokenizer.
        request_id: becomes part of the reply's id.
        fingerprint: of the weights that answer.
        logprobs: whether they were asked for.
    """

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, job: Job, codec: TextCodec, request_id: str, fingerprint: str, logprobs: bool):
        self._job = job
        self._codec = codec
        self._logprobs = logprobs
        self._head = {
            "id": f"{self.id_prefix}{request_id}",
            "created": int(time.time()),
            "model": job.label,
            "system_fingerprint": fingerprint,
        }

    def headers(self) -> dict[str, str]:
        """What ran; of several prompts all names, and the lowest confidence. And whether tools were left out."""
        headers = {"x-overtone-expert": quote(self._job.label, safe="+,")}
        if self._job.format.ignored:
            headers["x-overtone-tools"] = "ignored"
        confidences = [choice.target.confidence for choice in self._job.choices]
        if known := [confidence for confidence in confidences if confidence is not None]:
            headers["x-overtone-confidence"] = f"{min(known):.4f}"
        return headers

    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """The reply to a plain request, from all pieces of every choice."""
        kept = self._job.best()
        return self._head | {
            "object": self.whole_object,
            "choices": [self._choice(index, number, pieces[number]) for index, number in enumerate(kept)],
            "usage": self.usage(),
        }

    def chunk(self, number: int, piece: Piece) -> dict[str, Any]:
        """One event of a streamed reply; its `model` is what runs this choice."""
        return self._head | {
            "object": self.chunk_object,
            "model": self._job.choices[number].target.label,
            "choices": [self._choice_of(number, number, (piece,), self._delta(number, piece))],
        }

    def last_chunk(self) -> dict[str, Any]:
        """The event that `stream_options.include_usage` asks for: no choices, the usage."""
        return self._head | {"object": self.chunk_object, "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens so far, those of candidates that are not returned too; a prompt counts once."""
        generated = sum(choice.text.tokens for choice in self._job.choices)
        # The first candidate of each prompt: the later ones may find what it computed in the cache.
        cached = sum(choice.text.cached_tokens for choice in self._job.choices[:: self._job.candidates])
        return {
            "prompt_tokens": self._job.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._job.prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

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
