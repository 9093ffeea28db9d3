"""From a checked body to engine requests: tokens, routing, limits."""

import asyncio
import dataclasses
import time
import uuid
from dataclasses import dataclass

from serve.api.catalogue import Target
from serve.api.choice import ChoiceText, TextOptions
from serve.api.errors import context_overflow, invalid
from serve.api.schemas import CompletionRequest
from serve.api.schemas.completion import DEFAULT_MAX_TOKENS
from serve.api.service import Runtime, Service
from serve.engine import Request, SamplingParams

_INLINE_CHARACTERS = 16_384
"""Longer prompts are tokenised and routed off the event loop; up to here that takes a few milliseconds at most."""

_SEEDS = 2**64


@dataclass(frozen=True)
class Prepared:
    """One choice, ready to be admitted."""

    request: Request
    target: Target
    text: ChoiceText


@dataclass(frozen=True)
class Job:
    """A whole request: `n` choices of each prompt, prompt by prompt."""

    choices: tuple[Prepared, ...]
    prompt_tokens: int
    arrival: float


async def prepare(service: Service, runtime: Runtime, body: CompletionRequest, max_choices: int) -> Job:
    """Tokenise, route and check every prompt of a request.

    Raises:
        ApiError: 404 for an unknown name; 400 for whatever the model cannot do.
    """
    arrival = time.monotonic()
    if (wanted := len(body.prompt) * body.n) > max_choices:
        raise invalid(
            "n" if len(body.prompt) == 1 else "prompt",
            f"{len(body.prompt)} prompts × n {body.n} are {wanted} choices; at most {max_choices} fit in one request",
        )
    forced = runtime.catalogue.resolve(body.model, body.experts)
    _check_tokens(body, runtime.vocab_size)
    work = (service, runtime, body, forced, arrival)
    if sum(map(len, body.prompt)) > _INLINE_CHARACTERS:
        return await asyncio.to_thread(_job, *work)
    return _job(*work)


def _job(service: Service, runtime: Runtime, body: CompletionRequest, forced: Target | None, arrival: float) -> Job:
    unique, choices, prompt_tokens = uuid.uuid4().hex, [], 0
    options = TextOptions(
        stops=body.stop,
        include_stop=body.include_stop_str_in_output,
        min_tokens=body.min_tokens,
        stop_token_ids=frozenset(body.stop_token_ids),
        echo=body.echo,
        logprobs=body.logprobs is not None,
    )
    for number, prompt in enumerate(body.prompt):
        text = prompt if isinstance(prompt, str) else None
        tokens = runtime.codec.encode(prompt) if isinstance(prompt, str) else prompt
        params = _params(body, _room(body, len(tokens), number, runtime.catalogue.max_model_len))
        target = forced or service.target(runtime, text if text is not None else runtime.codec.decode(tokens))
        prompt_tokens += len(tokens)
        for copy in range(body.n):
            # With one seed for all, the copies would be equal.
            seed = None if body.seed is None else (body.seed + copy) % _SEEDS
            request = Request(
                request_id=f"{unique}-{number}-{copy}",  # never the client's own, which two clients may share
                prompt=tokens,
                params=dataclasses.replace(params, seed=seed),
                experts=target.experts,
                priority=body.priority,
                arrival=arrival,
            )
            choices.append(Prepared(request, target, ChoiceText(runtime.codec, tokens, text, options)))
    return Job(tuple(choices), prompt_tokens, arrival)


def _room(body: CompletionRequest, prompt_tokens: int, number: int, max_model_len: int) -> int:
    """Tokens to generate: what was asked for, or the default as far as it fits."""
    which = "the prompt" if len(body.prompt) == 1 else f"prompt {number}"
    if prompt_tokens == 0:
        raise invalid("prompt", f"{which} is empty; it must hold at least one token")
    room = max_model_len - prompt_tokens
    wanted = body.max_tokens if body.max_tokens is not None else max(min(DEFAULT_MAX_TOKENS, room), 1)
    if wanted > room:
        raise context_overflow(
            f"the model's context is {max_model_len} tokens; {which} has {prompt_tokens} and max_tokens asks for "
            f"{wanted} more"
        )
    if body.min_tokens > wanted:
        raise context_overflow(
            f"min_tokens asks for {body.min_tokens} tokens; {which} leaves room for {wanted} of {max_model_len}"
        )
    return wanted


def _check_tokens(body: CompletionRequest, vocab_size: int) -> None:
    fields = [("prompt", prompt) for prompt in body.prompt if not isinstance(prompt, str)]
    for name, tokens in (*fields, ("stop_token_ids", body.stop_token_ids), ("logit_bias", tuple(body.logit_bias))):
        if tokens and (largest := max(tokens)) >= vocab_size:
            raise invalid(name, f"{name}: no token {largest}; the model's vocabulary has {vocab_size}")


def _params(body: CompletionRequest, max_tokens: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),  # vLLM's -1 and 0 both keep all tokens
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
