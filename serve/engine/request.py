"""Inputs and outputs of the engine: token ids, never text."""

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from serve.engine.token_rules import TokenMask, TokenRules
from serve.experts.version import ExpertLoadError

FinishReason = Literal["stop", "length", "abort", "error"]
Pooling = Literal["mean", "last"]
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The order is: penalties and bias, bans, temperature, top-k, top-p, min-p, draw.

    If the bans (`allowed_token_ids`, `bad_words`, `min_tokens`, a request's token mask) leave no token at all, the
    end tokens are what is left.

    Attributes:
        max_tokens: tokens to generate; 0 computes the prompt only (for `prompt_logprobs`).
        temperature: 0 is greedy, ties going to the lowest token.
        top_p: keep the most likely tokens up to this mass, after top-k.
        top_k: keep the k most likely tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the most likely one.
        presence_penalty: subtracted from the logit of every token generated so far.
        frequency_penalty: subtracted once for each time the token was generated so far.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or output.
        logit_bias: added to the logits of these tokens.
        allowed_token_ids: nothing but these can be drawn; None: anything.
        bad_words: token sequences that the output must not contain: their last token cannot follow the others.
        seed: makes the draws reproducible, whatever else is in the batch.
        stop_token_ids: end the text, besides the end tokens; the token is part of the output.
        end_token_ids: the end tokens in place of the model's own; None: the model's.
        ignore_eos: the end tokens do not end the text.
        min_tokens: end and stop tokens cannot be drawn before this many tokens.
        logprobs: report the drawn token's log-probability and those of this many most likely tokens.
        prompt_logprobs: the same for every prompt token but the first.
        rules: `logit_bias`, `allowed_token_ids` and `bad_words`, prepared for the draws; None if none is set.

    Log-probabilities are the model's own: before penalties, bias, temperature and filters.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    end_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    rules: TokenRules | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check("max_tokens", self.max_tokens >= 0, "at least 0")
        self._check("temperature", 0 <= self.temperature < math.inf, "a number of at least 0")
        self._check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._check("top_k", self.top_k >= 0, "at least 0 (0 keeps all tokens)")
        self._check("min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        self._check("presence_penalty", -2 <= self.presence_penalty <= 2, "from -2 to 2")
        self._check("frequency_penalty", -2 <= self.frequency_penalty <= 2, "from -2 to 2")
        self._check("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a number above 0")
        self._check("logit_bias", all(math.isfinite(b) for b in self.logit_bias.values()), "finite for each token")
        self._check("allowed_token_ids", self.allowed_token_ids != (), "unset, or at least one token")
        self._check("bad_words", all(self.bad_words), "sequences of at least one token")
        self._check("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "from 0 to max_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            self._check(name, value is None or 0 <= value <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}")
        object.__setattr__(self, "rules", TokenRules.of(self.logit_bias, self.allowed_token_ids, self.bad_words))

    def with_seed(self, seed: int | None) -> "SamplingParams":
        """The same with another seed, for another continuation of one prompt: the prepared rules are shared."""
        other = copy.copy(self)
        object.__setattr__(other, "seed", seed)
        return other

    def _check(self, name: str, ok: bool, expected: str) -> None:
        if not ok:
            raise ValueError(f"{name} is {getattr(self, name)}; it must be {expected}")

    def ends(self, usual: tuple[int, ...]) -> tuple[int, ...]:
        """The end tokens of the request; `usual` are the model's own."""
        return usual if self.end_token_ids is None else self.end_token_ids

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken instead of a draw."""
        return self.temperature < 1e-5


@dataclass(frozen=True)
class Request:
    """One text to continue.

    Attributes:
        request_id: unique among the unfinished requests.
        prompt: token ids, at least one.
        params: how tokens are chosen.
        experts: (name, gate) of each expert whose residual is added; empty: the backbone alone.
        priority: lower is served earlier.
        arrival: `time.monotonic()` when the request came in.
        mask: says before each draw what may be drawn; this request's alone, as it remembers what was drawn.
        prompt_counts: whether the prompt's tokens are counted with this request. Of several continuations of one prompt
            only the first counts it.
        scored_from: with `prompt_logprobs`, the first prompt token whose log-probability is wanted; those before it
            may come from the prefix cache.
        pooling: the prompt's hidden state is wanted, after the final norm: the mean over its tokens, or the last one's.
        warm_up: the server makes this request itself, before any client; the observer does not receive it.
    """

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    experts: tuple[tuple[str, float], ...] = ()
    priority: int = 0
    arrival: float = field(default_factory=time.monotonic)
    mask: TokenMask | None = None
    prompt_counts: bool = True
    scored_from: int = 1
    pooling: Pooling | None = None
    warm_up: bool = False


@dataclass(frozen=True)
class TokenOutput:
    """One token.

    Attributes:
        token: its id.
        logprob: natural log of its probability, if requested.
        top_logprobs: (token, log-probability) of the most likely tokens, descending, if requested.
    """

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None


@dataclass(frozen=True)
class Output:
    """What one step did for one request.

    Attributes:
        request_id: the request.
        tokens: generated in this step; none if the request ended without one.
        finish_reason: None before its end; "stop" (an end token, the last of the output), "length", "abort", "error".
        error: one line, if the reason is "error".
        cached_tokens: prompt tokens whose keys and values came from the prefix cache.
        prompt_logprobs: on the first output, if requested: one entry for each prompt token, None for those before
            `scored_from`.
        pooled: on the first output, if requested: the pooled hidden state, float32 values.
        expert_error: why one of the experts could not be loaded, if that ended the request.
    """

    request_id: str
    tokens: tuple[TokenOutput, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenOutput | None, ...] | None = None
    pooled: tuple[float, ...] | None = None
    expert_error: ExpertLoadError | None = None
