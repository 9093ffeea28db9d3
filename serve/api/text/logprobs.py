"""OpenAI's `logprobs` objects, of a completion and of a chat."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve.api.text.codec import TextCodec
from serve.engine import TokenOutput


@dataclass(frozen=True)
class TokenRecord:
    """One token of a choice.

    Attributes:
        token: its id.
        offset: where its text begins within the choice's text.
        logprob: natural log of its probability; None for a prompt's first token.
        top_logprobs: (token, log-probability) of the most likely tokens; None if there is no `logprob`.
    """

    token: int
    offset: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...] | None

    @classmethod
    def of(cls, output: TokenOutput, offset: int) -> "TokenRecord":
        """A token as the engine reports it."""
        return cls(output.token, offset, output.logprob, output.top_logprobs)


def logprobs_object(codec: TextCodec, records: Sequence[TokenRecord]) -> dict[str, list[object]]:
    """`{tokens, token_logprobs, top_logprobs, text_offset}`, one entry a token.

    The drawn token is always among the top ones, as OpenAI promises, so that there may be one more than asked for.
    """
    return {
        "tokens": [codec.token_text(record.token) for record in records],
        "token_logprobs": [record.logprob for record in records],
        "top_logprobs": [_top(codec, record) for record in records],
        "text_offset": [record.offset for record in records],
    }


def chat_logprobs_object(codec: TextCodec, records: Sequence[TokenRecord]) -> dict[str, object]:
    """`{content: [{token, logprob, bytes, top_logprobs}]}`, one entry a token, its alternatives as asked for."""
    entries = []
    for record in records:
        top = [_entry(codec, token, logprob) for token, logprob in record.top_logprobs or ()]
        entries.append({**_entry(codec, record.token, record.logprob or 0.0), "top_logprobs": top})
    return {"content": entries, "refusal": None}


def _entry(codec: TextCodec, token: int, logprob: float) -> dict[str, object]:
    return {"token": codec.token_text(token), "logprob": logprob, "bytes": list(codec.token_bytes(token))}


def _top(codec: TextCodec, record: TokenRecord) -> dict[str, float] | None:
    if record.logprob is None:
        return None
    top: dict[str, float] = {}
    for token, logprob in record.top_logprobs or ():
        top.setdefault(codec.token_text(token), logprob)
    top.setdefault(codec.token_text(record.token), record.logprob)
    return top
