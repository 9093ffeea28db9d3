"""POST /tokenize and /detokenize, as vLLM has them."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from serve.api.errors import invalid, prompt_too_long
from serve.api.prompts import chat_text
from serve.api.schemas import BodyParser, DetokenizeRequest, TokenizeRequest
from serve.api.service import Runtime, Service
from serve.api.text import TextTooLong

_MOST_TOKENS = 65_536
"""Longer texts are counted, and longer lists read, only where the context is longer, too."""


def router(service: Service, bodies: BodyParser) -> APIRouter:
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
