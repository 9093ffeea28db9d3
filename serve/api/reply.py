"""OpenAI's completion objects, whole and streamed, with this server's three extension fields a choice.

`choices[].expert` names what ran ("backbone", an expert, "a+b" for a mix), `choices[].confidence` is the router's, null
where it was not asked, and `choices[].stop_reason` is the stop string or token that ended the text, as vLLM has it.
"""

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from serve.api.catalogue import Catalogue
from serve.api.choice import Piece
from serve.api.logprobs import TokenRecord, logprobs_object
from serve.api.prepare import Job
from serve.api.text import TextCodec


class Reply:
    """Builds what a client gets for one job."""

    def __init__(self, job: Job, catalogue: Catalogue, codec: TextCodec, request_id: str, logprobs: bool):
        self._job = job
        self._codec = codec
        self._logprobs = logprobs
        targets = [choice.target for choice in job.choices]
        self.expert = ",".join(dict.fromkeys(target.label for target in targets))
        self._confidences = [target.confidence for target in targets if target.confidence is not None]
        self._head = {
            "id": f"cmpl-{request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.expert,
            "system_fingerprint": catalogue.fingerprint(targets),
        }

    def headers(self) -> dict[str, str]:
        """What ran; of several prompts all names, and the lowest confidence."""
        headers = {"x-overtone-expert": quote(self.expert, safe="+,")}
        if self._confidences:
            headers["x-overtone-confidence"] = f"{min(self._confidences):.4f}"
        return headers

    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """The reply to a plain request, from all pieces of every choice."""
        return self._head | {
            "choices": [self._choice(index, parts) for index, parts in enumerate(pieces)],
            "usage": self.usage(),
        }

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """One event of a streamed reply; its `model` is what runs this choice."""
        return self._head | {
            "model": self._job.choices[index].target.label,
            "choices": [self._choice(index, (piece,))],
        }

    def last_chunk(self) -> dict[str, Any]:
        """The event that `stream_options.include_usage` asks for: no choices, the usage."""
        return self._head | {"choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens so far; a prompt counts once however many choices it has."""
        generated = sum(choice.text.tokens for choice in self._job.choices)
        cached = {choice.request.prompt: choice.text.cached_tokens for choice in self._job.choices}
        return {
            "prompt_tokens": self._job.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._job.prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        }

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        records: list[TokenRecord] = [record for piece in pieces for record in piece.records]
        target = self._job.choices[index].target
        last = pieces[-1]
        return {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": logprobs_object(self._codec, records) if self._logprobs else None,
            "finish_reason": last.finish_reason,
            "stop_reason": last.stop_reason,
            "expert": target.label,
            "confidence": target.confidence,
        }
