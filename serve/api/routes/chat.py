"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from serve.api.answer import answer
from serve.api.chat_reply import ChatReply
from serve.api.schemas import ChatRequest, parse_body
from serve.api.service import Service
from serve.config import ApiSettings


def router(service: Service, settings: ApiSettings) -> APIRouter:
    """The route over a service."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        runtime = service.ready()
        body = await parse_body(request, ChatRequest, settings.max_body_bytes)
        return await answer(request, service, runtime, settings, body, ChatReply)

    return routes
