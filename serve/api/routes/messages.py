"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic has them."""

import asyncio

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from serve.api.answer import answer
from serve.api.anthropic_reply import AnthropicReply, anthropic_error
from serve.api.errors import ApiError
from serve.api.prompts import chat_prompt
from serve.api.schemas import AnthropicRequest, BodyParser
from serve.api.service import Runtime, Service
from serve.config import ApiSettings


def router(service: Service, settings: ApiSettings, bodies: BodyParser) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter()

    @routes.post("/v1/messages")
    async def messages(request: Request) -> Response:
        """Answer a conversation."""
        try:
            return await answer(request, service, settings, bodies, AnthropicRequest, AnthropicReply)
        except ApiError as error:
            return _refusal(error)

    @routes.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        """The tokens of a conversation's prompt."""
        try:
            runtime = service.ready()
            body = await bodies.read(request, AnthropicRequest)
            return JSONResponse({"input_tokens": await asyncio.to_thread(_length, runtime, body)})
        except ApiError as error:
            return _refusal(error)

    return routes


def _length(runtime: Runtime, body: AnthropicRequest) -> int:
    """Tokens of the prompt that the one that would answer gets.

    Raises:
        ApiError: as for a conversation.
    """
    forced = runtime.catalogue.resolve(body.model)
    return len(chat_prompt(runtime, runtime.foreseen(forced, body.chat.user_texts), body.chat).tokens)


def _refusal(error: ApiError) -> Response:
    return JSONResponse(anthropic_error(error), status_code=error.status, headers=dict(error.headers))
