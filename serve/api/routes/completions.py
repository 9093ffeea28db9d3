"""POST /v1/completions."""

from fastapi import APIRouter, Request, Response

from serve.api.answer import answer
from serve.api.completion_reply import CompletionReply
from serve.api.schemas import BodyParser, CompletionRequest
from serve.api.service import Service
from serve.config import ApiSettings


def router(service: Service, settings: ApiSettings, bodies: BodyParser) -> APIRouter:
    """The route over a service."""
    routes = APIRouter()

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        """Continue one or several prompts."""
        return await answer(request, service, settings, bodies, CompletionRequest, CompletionReply)

    return routes
