"""GET /v1/experts, and what changes experts and needs an admin key.

POST /v1/experts/load, /reload and /unload; /v1/load_lora_adapter and /v1/unload_lora_adapter as vLLM has them.
"""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse

from serve.api.admin.experts import ExpertAdmin
from serve.api.context import context_of
from serve.api.schemas import (
    BodyParser,
    LoadExpertRequest,
    LoadLoraRequest,
    ReloadExpertRequest,
    UnloadExpertRequest,
    UnloadLoraRequest,
)
from serve.api.security.auth import require_admin
from serve.api.status import READ


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

    @routes.post("/v1/load_lora_adapter")
    async def load_adapter(request: Request) -> PlainTextResponse:
        require_admin(request)
        body = await bodies.read(request, LoadLoraRequest)
        context_of(request).expert = body.lora_name
        await admin.load_adapter(body)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @routes.post("/v1/unload_lora_adapter")
    async def unload_adapter(request: Request) -> PlainTextResponse:
        require_admin(request)
        body = await bodies.read(request, UnloadLoraRequest)
        context_of(request).expert = body.lora_name
        await admin.unload_adapter(body)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return routes
