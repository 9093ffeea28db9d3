"""GET /v1/models and GET /v1/models/{model}."""

from typing import Any

from fastapi import APIRouter

from serve.api.catalogue import Catalogue
from serve.api.errors import unavailable
from serve.api.routes import READ
from serve.api.service import Service


def router(service: Service) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter()

    def catalogue() -> Catalogue:
        # Draining or dead, the names are still true; only while loading there are none.
        if service.runtime is None:
            raise unavailable("the model is still loading", "loading")
        return service.runtime.catalogue

    @routes.api_route("/v1/models", methods=READ)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": catalogue().cards()}

    @routes.api_route("/v1/models/{name:path}", methods=READ)
    async def model(name: str) -> dict[str, object]:
        return catalogue().card(name)

    return routes
