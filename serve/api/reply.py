"""What a client gets for a job, in any API's words."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from serve.api.choice import Piece
from serve.api.errors import ApiError
from serve.api.prepare import Job
from serve.api.schemas import Body
from serve.api.text import TextCodec


class Reply(ABC):
    """Builds the reply to one job.

    Args:
        asked: the request's body.
        job: the job, which counts its tokens while it runs.
        codec: the tokenizer.
        request_id: becomes part of the reply's id.
        fingerprint: of the weights that answer.
        logprobs: whether they were asked for.
    """

    id_prefix: ClassVar[str]
    named_events: ClassVar = True
    """Whether the events of a stream have names, their `type`, and no `[DONE]` ends them."""

    def __init__(self, asked: Body, job: Job, codec: TextCodec, request_id: str, fingerprint: str, logprobs: bool):  # noqa: ARG002
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
        """What ran; of several prompts all names, and the lowest confidence.

        Also whether a chat kept or changed its expert, and whether tools were left out.
        """
        headers = {"x-overtone-expert": quote(self._job.label, safe="+,")}
        if self._job.format.ignored:
            headers["x-overtone-tools"] = "ignored"
        confidences = [choice.target.confidence for choice in self._job.choices]
        if known := [confidence for confidence in confidences if confidence is not None]:
            headers["x-overtone-confidence"] = f"{min(known):.4f}"
        if session := self._job.choices[0].target.session:
            headers["x-overtone-session"] = session
        return headers

    @abstractmethod
    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """The reply to a plain request, from all pieces of every choice."""

    def opening(self) -> Iterator[dict[str, Any]]:
        """Events of a streamed reply before its first piece."""
        return iter(())

    @abstractmethod
    def chunks(self, number: int, piece: Piece) -> Iterator[dict[str, Any]]:
        """Events that say a piece of one choice."""

    def closing(self) -> Iterator[dict[str, Any]]:
        """Events after the last piece."""
        return iter(())

    @abstractmethod
    def failure(self, error: ApiError) -> dict[str, Any]:
        """The last event of a stream that fails."""

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
