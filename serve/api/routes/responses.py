"""POST /v1/responses."""

from fastapi import APIRouter, Request, Response

from serve.api.answer import answer
from serve.api.response_reply import ResponseReply
from serve.api.schemas import BodyParser, ResponseRequest
from serve.api.service import Service
from serve.config import ApiSettings


def router(service: Service, settings: ApiSettings, bodies: BodyParser) -> APIRouter:
    """The route over a service."""
    routes = APIRouter()

    @routes.post("/v1/responses")
    async def responses(request: Request) -> Response:
        """Answer a conversation."""
        return await answer(request, service, settings, bodies, ResponseRequest, ResponseReply)

    return routes
