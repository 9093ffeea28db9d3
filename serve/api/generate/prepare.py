"""From a checked body to engine requests."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from serve.api.errors import invalid
from serve.api.generate.catalogue import Target
from serve.api.generate.prompts import Asked, prompt_characters, prompt_count, read_prompts
from serve.api.generate.service import Runtime, Service
from serve.api.generate.settings import ReplySettings
from serve.api.grammar.structure import GrammarMask, asked_calls, asked_structure
from serve.api.messages import MessageFormat
from serve.api.schemas import GenerationRequest
from serve.api.text.choice import ChoiceText, TextOptions
from serve.api.text.codec import Echo, TextCodec
from serve.engine import Request, SamplingParams

_INLINE_CHARACTERS = 16_384
"""Longer prompts are tokenised and routed off the event loop; up to here that takes a few milliseconds at most."""

_INLINE_SCORES = 8192
"""Prompts times the router's experts: more are routed off the event loop. This number takes two milliseconds."""

_SEEDS = 2**64


@dataclass(frozen=True)
class Prepared:
    """One choice, ready to be admitted."""

    request: Request
    target: Target
    text: ChoiceText
    mask: GrammarMask | None = None


@dataclass(frozen=True)
class Job:
    """A whole request: some candidates of each prompt, prompt by prompt.

    Attributes:
        choices: the candidates.
        candidates: of each prompt.
        returned: how many of them the client gets, the best ones.
        prompt_tokens: of all prompts.
        arrival: `time.monotonic()` when it came.
        format: how the text of a chat's replies is read.
    """

    choices: tuple[Prepared, ...]
    candidates: int
    returned: int
    prompt_tokens: int
    arrival: float
    format: MessageFormat

    @property
    def label(self) -> str:
        """What answers: of several prompts, all names."""
        return ",".join(dict.fromkeys(choice.target.label for choice in self.choices))

    def prompt_texts(self, codec: TextCodec) -> Iterator[str]:
        """The text of each prompt, as the model sees it."""
        for first in range(0, len(self.choices), self.candidates):
            yield codec.decode(self.choices[first].request.prompt)

    def best(self) -> list[int]:
        """Numbers of the choices to return, prompt by prompt, each prompt's best ones first if some are left out."""
        kept: list[int] = []
        for first in range(0, len(self.choices), self.candidates):
            numbers = range(first, first + self.candidates)
            if self.returned < self.candidates:
                ranked = sorted(numbers, key=lambda number: -self.choices[number].text.mean_logprob)
                kept += ranked[: self.returned]
            else:
                kept += numbers
        return kept


async def prepare(service: Service, runtime: Runtime, body: GenerationRequest, max_choices: int) -> Job:
    """Tokenise, route and check every prompt of a request.

    Raises:
        ApiError: 404 for an unknown name; 400 for what the model does not support.
    """
    arrival = time.monotonic()
    prompts = prompt_count(body)
    if (wanted := prompts * body.candidates) > max_choices:
        raise invalid(
            "n" if prompts == 1 else "prompt",
            f"{prompts} prompts × n {body.candidates} are {wanted} choices; at most {max_choices} fit in one request",
        )
    forced = runtime.catalogue.resolve(body.model, body.experts)
    router = runtime.router if forced is None else None
    much = router is not None and (router.encodes or prompts * len(router.names) > _INLINE_SCORES)
    much = much or _characters(body) > _INLINE_CHARACTERS
    reading = partial(read_prompts, service, runtime, body, forced)
    asked = await service.off_loop(reading) if much else reading()
    structure = asked_structure(body) or asked_calls(runtime.codec, body, asked[0].shape)
    grammars: dict[tuple[int, ...] | None, GrammarMask] = {}
    if structure is not None:
        for ends in dict.fromkeys(one.replies.end_tokens for one in asked):
            grammars[ends] = await runtime.structures.compiled(*structure, ends)
    putting = partial(_job, runtime, body, asked, grammars, arrival)
    return await service.off_loop(putting) if much else putting()


def _job(
    runtime: Runtime,
    body: GenerationRequest,
    asked: Sequence[Asked],
    grammars: Mapping[tuple[int, ...] | None, GrammarMask],
    arrival: float,
) -> Job:
    unique, choices = uuid.uuid4().hex, []
    shape = asked[0].shape
    options = _text_options(body, runtime.codec, shape)
    words = runtime.codec.word_tokens(body.bad_words)
    for number, one in enumerate(asked):
        prompt, tokens = one.prompt, one.prompt.tokens
        params = _params(body, one.replies, one.room, words)
        grammar = grammars.get(one.replies.end_tokens)
        echo = Echo.of(runtime.codec, tokens, prompt.text) if body.echoes else None
        for copy in range(body.candidates):
            # With one seed for all, the copies would be equal.
            seed = None if body.seed is None else (body.seed + copy) % _SEEDS
            mask = None if grammar is None else grammar.copy()
            request = Request(
                request_id=f"{unique}-{number}-{copy}",  # never the client's own, which two clients may share
                prompt=tokens,
                params=params.with_seed(seed),
                experts=one.target.experts,
                priority=body.priority,
                arrival=arrival,
                mask=mask,
                prompt_counts=copy == 0,
            )
            text = ChoiceText(runtime.codec, tokens, echo, options)
            choices.append(Prepared(request, one.target, text, mask))
    prompt_tokens = sum(len(one.prompt.tokens) for one in asked)
    return Job(tuple(choices), body.candidates, body.n, prompt_tokens, arrival, shape)


def _characters(body: GenerationRequest) -> int:
    """The approximate work of preparing a request: its prompts, its words and its settings for single tokens."""
    words = sum(map(len, body.bad_words))
    return prompt_characters(body) + words + len(body.logit_bias) + len(body.allowed_token_ids or ())


def _text_options(body: GenerationRequest, codec: TextCodec, shape: MessageFormat) -> TextOptions:
    return TextOptions(
        stops=body.stop,
        include_stop=body.include_stop_str_in_output,
        min_tokens=body.min_tokens,
        stop_token_ids=frozenset(body.stop_token_ids),
        logprobs=body.top_tokens is not None,
        shown=codec.special_texts(shape.markers),
    )


def _params(
    body: GenerationRequest, replies: ReplySettings, max_tokens: int, bad_words: tuple[tuple[int, ...], ...]
) -> SamplingParams:
    top_tokens, defaults = body.top_tokens, replies.defaults
    if top_tokens is None and body.candidates > body.n:
        top_tokens = 0  # to know the best
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=defaults.value(body, "temperature"),
        top_p=defaults.value(body, "top_p"),
        top_k=max(defaults.value(body, "top_k"), 0),  # vLLM's -1 and 0 both keep all tokens
        min_p=defaults.value(body, "min_p"),
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=defaults.value(body, "repetition_penalty"),
        logit_bias=body.logit_bias,
        # A token that is named a million times would be processed a million times, at every draw.
        allowed_token_ids=body.allowed_token_ids and tuple(dict.fromkeys(body.allowed_token_ids)),
        bad_words=bad_words,
        stop_token_ids=body.stop_token_ids,
        end_token_ids=replies.end_tokens,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        logprobs=top_tokens,
        prompt_logprobs=body.top_tokens if body.echoes else None,
    )
