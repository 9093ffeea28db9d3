"""GET /v1/experts; POST /v1/experts/load, /reload and /unload, which need an admin key."""

from typing import Any

from fastapi import APIRouter, Request

from serve.api.auth import require_admin
from serve.api.context import context_of
from serve.api.expert_admin import ExpertAdmin
from serve.api.routes import READ
from serve.api.schemas import BodyParser, LoadExpertRequest, ReloadExpertRequest, UnloadExpertRequest


def router(admin: ExpertAdmin, bodies: BodyParser) -> APIRouter:
    """The routes over what changes experts."""
    routes = APIRouter()

    @routes.api_route("/v1/experts", methods=READ)
    async def experts() -> dict[str, Any]:
        return {"object": "list", "data": admin.cards()}

    @routes.api_route("/v1/experts/{name}", methods=READ)
    async def expert(name: str) -> dict[str, Any]:
        return admin.card(name)

    @routes.post("/v1/experts/load")
    async def load(request: Request) -> dict[str, Any]:
        require_admin(request)
        body = await bodies.read(request, LoadExpertRequest)
        context_of(request).expert = body.name
        return await admin.load(body)

    @routes.post("/v1/experts/reload")
    async def reload(request: Request) -> dict[str, Any]:
        require_admin(request)
        body = await bodies.read(request, ReloadExpertRequest)
        context_of(request).expert = body.name
        return await admin.reload(body)

    @routes.post("/v1/experts/unload")
    async def unload(request: Request) -> dict[str, Any]:
        require_admin(request)
        body = await bodies.read(request, UnloadExpertRequest)
        context_of(request).expert = body.name
        return await admin.unload(body)

    return routes
