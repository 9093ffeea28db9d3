"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them; they need an admin key."""

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse

from serve.api.auth import require_admin
from serve.api.context import context_of
from serve.api.expert_admin import ExpertAdmin
from serve.api.schemas import BodyParser, LoadLoraRequest, UnloadLoraRequest


def router(admin: ExpertAdmin, bodies: BodyParser) -> APIRouter:
    """The routes over what changes experts."""
    routes = APIRouter()

    @routes.post("/v1/load_lora_adapter")
    async def load(request: Request) -> PlainTextResponse:
        require_admin(request)
        body = await bodies.read(request, LoadLoraRequest)
        context_of(request).expert = body.lora_name
        await admin.load_adapter(body)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @routes.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> PlainTextResponse:
        require_admin(request)
        body = await bodies.read(request, UnloadLoraRequest)
        context_of(request).expert = body.lora_name
        await admin.unload_adapter(body)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return routes
