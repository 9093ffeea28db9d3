"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from serve.api.answer import answer
from serve.api.chat_reply import ChatReply
from serve.api.schemas import BodyParser, ChatRequest
from serve.api.service import Service
from serve.config import ApiSettings


def router(service: Service, settings: ApiSettings, bodies: BodyParser) -> APIRouter:
    """The route over a service."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        return await answer(request, service, settings, bodies, ChatRequest, ChatReply)

    return routes
