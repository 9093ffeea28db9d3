"""The text of one choice: tokens in, pieces of text out, up to a stop string."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from serve.api.errors import expert_unavailable, internal, unavailable
from serve.api.text.codec import Detokenizer, Echo, TextCodec
from serve.api.text.logprobs import TokenRecord
from serve.engine import Output, TokenOutput


@dataclass(frozen=True)
class Match:
    """A stop string was found: the text ends at `end` characters."""

    stop: str
    end: int


class StopSearch:
    """Finds the first of several stop strings to be complete, although each may span pieces. It keeps no state.

    Args:
        stops: the strings, none empty.
        include: whether the text keeps the string that stopped it.
    """

    def __init__(self, stops: Sequence[str], include: bool = False):
        self._stops = tuple(stops)
        self._include = include
        self._longest = max(map(len, self._stops), default=0)
        # With a set, the cost of a token depends on the longest string and not on how many there are.
        self._beginnings = frozenset(stop[:end] for stop in self._stops for end in range(1, len(stop)))

    def find(self, text: str, new: int, start: int = 0) -> Match | None:
        """The first match that ends within the last `new` characters of `text`.

        Args:
            text: everything generated so far.
            new: how many characters at its end were not searched before.
            start: place at which the search begins; a match is entirely after it.
        """
        begin = max(start, len(text) - new - self._longest + 1, 0)
        # The first to be complete wins, as it would if text came one character at a time: where tokens end must not
        # decide where a completion does.
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop, begin)) >= 0]
        if not found:
            return None
        _, at, stop = min(found)
        return Match(stop, at + len(stop) if self._include else at)

    def safe_length(self, text: str, start: int = 0) -> int:
        """How much of `text` may be sent: all but the longest end that could still become a stop string."""
        for begin in range(max(len(text) - self._longest + 1, start, 0), len(text)):
            if text[begin:] in self._beginnings:
                return begin
        return len(text)


Finish = Literal["stop", "length"]
"""Why a text ended."""


@dataclass(frozen=True)
class Piece:
    """What one engine output adds to a choice.

    Attributes:
        text: text to append.
        records: tokens whose text has begun by now.
        finish_reason: set on the last piece.
        stop_reason: the stop string, or the id of the `stop_token_ids`, that ended it.
    """

    text: str
    records: tuple[TokenRecord, ...] = ()
    finish_reason: Finish | None = None
    stop_reason: str | int | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.records or self.finish_reason)


@dataclass(frozen=True)
class TextOptions:
    """The part of a request that is about text, which the engine does not see.

    Attributes:
        stops: strings that end the text, wherever tokens end.
        include_stop: keep the string, or the text of the stop token, in the output.
        min_tokens: a stop string counts once that many tokens are there.
        stop_token_ids: tokens that end the text without being part of it.
        logprobs: keep a record of each token.
        shown: special token → its text, of those that become text.
    """

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: bool = False
    shown: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def search(self) -> StopSearch:
        """The search for the stop strings, which all choices of a request share."""
        return StopSearch(self.stops, self.include_stop)


class ChoiceText:
    """Turns the engine's outputs for one choice into pieces.

    Args:
        codec: the tokenizer.
        prompt: the prompt's tokens.
        echo: what the text begins with, None if that is the completion.
        options: stop strings.
    """

    def __init__(self, codec: TextCodec, prompt: tuple[int, ...], echo: Echo | None, options: TextOptions):
        self._codec = codec
        self._prompt = prompt
        self._echo, self._offsets = ("", ()) if echo is None else (echo.text, echo.offsets)
        self._options = options
        self._detokenizer = Detokenizer(codec, prompt)
        self._search = options.search
        self._text = ""
        self._sent = 0
        self._search_from = 0
        self._held: list[TokenRecord] = []
        self._begun = False
        self._logprob = 0.0
        self.tokens = 0
        self.cached_tokens = 0

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the generated tokens, if the engine reports them; otherwise 0."""
        return self._logprob / max(self.tokens, 1)

    def push(self, output: Output) -> Piece:
        """Take one output; once a piece has a finish reason there must not be another.

        Raises:
            ApiError: the engine aborted the request.
        """
        if output.expert_error is not None:
            raise expert_unavailable(output.expert_error)
        if output.finish_reason == "error":
            raise internal(output.error or "the engine aborted the request")
        if output.finish_reason == "abort":
            raise unavailable("the server stopped before the completion was finished", "aborted")
        head = "" if self._begun else self._begin(output)
        finish: Finish | None = output.finish_reason
        reason: str | int | None = None
        for position, token in enumerate(output.tokens, 1):
            ends = finish == "stop" and position == len(output.tokens)
            if ends and token.token in self._options.stop_token_ids:
                reason = token.token
            shown = self._options.shown.get(token.token)
            if ends and not self._options.include_stop:
                text = ""
            else:
                text = self._detokenizer.push(token.token) if shown is None else shown
            if (stop := self._append(token, text)) is not None:
                return self._release(head, "stop", stop, end=True)
        if finish and (stop := self._extend(self._detokenizer.finish())) is not None:
            return self._release(head, "stop", stop, end=True)
        return self._release(head, finish, reason, end=finish is not None)

    def _begin(self, output: Output) -> str:
        self._begun = True
        self.cached_tokens = output.cached_tokens
        if self._offsets and output.prompt_logprobs is not None:
            scored = zip(self._prompt, self._offsets, output.prompt_logprobs, strict=True)
            self._held += [TokenRecord.of(found or TokenOutput(token), offset) for token, offset, found in scored]
        return self._echo

    def _append(self, token: TokenOutput, text: str) -> str | None:
        self.tokens += 1
        self._logprob += token.logprob or 0.0
        if self._options.logprobs:
            self._held.append(TokenRecord.of(token, len(self._echo) + len(self._text)))
        if self.tokens < self._options.min_tokens:
            self._search_from = len(self._text) + len(text)
        return self._extend(text)

    def _extend(self, text: str) -> str | None:
        """Append text; the stop string that it completes, at which the text is cut."""
        self._text += text
        match = self._search.find(self._text, len(text), self._search_from) if text else None
        if match is None:
            return None
        self._text = self._text[: match.end]
        self._held = [record for record in self._held if record.offset < len(self._echo) + match.end]
        return match.stop

    def _release(self, head: str, finish: Finish | None, reason: str | int | None, end: bool) -> Piece:
        """Everything that no further token can take back."""
        until = len(self._text) if end else self._search.safe_length(self._text, self._search_from)
        text, self._sent = self._text[self._sent : until], until
        limit = len(self._echo) + until
        ready = [record for record in self._held if end or record.offset < limit]
        self._held = self._held[len(ready) :]
        return Piece(head + text, tuple(ready), finish, reason)
