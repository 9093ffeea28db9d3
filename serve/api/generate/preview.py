"""What a request would become, without running it: POST /tokenize and /detokenize, and POST /v1/route."""

import asyncio
from functools import partial
from heapq import nsmallest
from typing import Any

from fastapi import APIRouter, Request

from serve.api.errors import invalid, prompt_too_long
from serve.api.generate.catalogue import AUTO, BACKBONE
from serve.api.generate.prompts import chat_text, check_length
from serve.api.generate.service import Runtime, Service
from serve.api.schemas import BodyParser, DetokenizeRequest, RouteRequest, TokenizeRequest
from serve.api.text.codec import TextTooLong
from serve.config import ApiSettings
from serve.decision import Decision

_MOST_TOKENS = 65_536
"""Longer texts are counted, and longer lists read, only if the context is longer, too."""


def router(service: Service, settings: ApiSettings, bodies: BodyParser) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter()

    @routes.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        runtime = service.ready()
        body = await bodies.read(request, TokenizeRequest)
        _check_model(runtime, body.model)
        return await asyncio.to_thread(_tokenized, runtime, body)

    @routes.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, Any]:
        runtime = service.ready()
        body = await bodies.read(request, DetokenizeRequest)
        _check_model(runtime, body.model)
        if len(body.tokens) > (most := _most_tokens(runtime)):
            raise prompt_too_long("tokens", f"tokens: {len(body.tokens)} tokens; at most {most} are read here")
        if body.tokens and (largest := max(body.tokens)) >= runtime.vocab_size:
            raise invalid("tokens", f"tokens: no token {largest}; the model's vocabulary has {runtime.vocab_size}")
        return {"prompt": await asyncio.to_thread(runtime.codec.decode, body.tokens, True)}

    @routes.post("/v1/route")
    async def route(request: Request) -> dict[str, Any]:
        runtime = service.ready()
        body = await bodies.read(request, RouteRequest)
        if body.model is not None and runtime.catalogue.resolve(body.model) is not None:
            raise invalid("model", f"{body.model!r} is not routed; leave model out, or name {AUTO!r}")
        if len(body.prompt) > settings.max_choices:
            raise invalid("prompt", f"{len(body.prompt)} prompts; at most {settings.max_choices} fit in one request")
        return {"object": "list", "data": await service.off_loop(partial(_decisions, service, runtime, body))}

    return routes


def _check_model(runtime: Runtime, model: str | None) -> None:
    """All names share one tokenizer, but an unknown name is still a mistake."""
    if model is not None:
        runtime.catalogue.resolve(model)


def _most_tokens(runtime: Runtime) -> int:
    return max(_MOST_TOKENS, runtime.catalogue.max_model_len)


def _tokenized(runtime: Runtime, body: TokenizeRequest) -> dict[str, Any]:
    if body.prompt is not None:
        field, text, special = "prompt", body.prompt, body.add_special_tokens is not False
    else:
        forced = runtime.catalogue.resolve(body.model)
        turns = [message.content for message in body.messages or () if message.role == "user"]
        text = chat_text(runtime.foreseen(forced, turns), body)
        field, special = "messages", bool(body.add_special_tokens)
    try:
        tokens = runtime.codec.encode(text, special, _most_tokens(runtime))
    except TextTooLong as error:
        raise prompt_too_long(field, f"{field}: {error}, the most that are counted here") from error
    return {
        "count": len(tokens),
        "max_model_len": runtime.catalogue.max_model_len,
        "tokens": tokens,
        "token_strs": [runtime.codec.token_text(token) for token in tokens] if body.return_token_strs else None,
    }


def _decisions(service: Service, runtime: Runtime, body: RouteRequest) -> list[dict[str, Any]]:
    for prompt in body.prompt:
        check_length(runtime, "prompt", prompt)
    return [
        _described(index, decision, body.top)
        for index, decision in enumerate(service.route_all(runtime, body.prompt, body.router_top_k))
    ]


def _described(index: int, decision: Decision, top: int | None) -> dict[str, Any]:
    scores = decision.scores.items()
    described = {
        "object": "route.decision",
        "index": index,
        "expert": decision.expert,
        "model": decision.expert or BACKBONE,
        "confidence": decision.confidence,
        "scores": dict(nsmallest(top or len(scores), scores, key=lambda score: (-score[1], score[0]))),
    }
    return described | {"experts": dict(decision.mix)} if len(decision.mix) > 1 else described
