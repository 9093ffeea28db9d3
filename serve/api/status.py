"""Routes about the server: /v1/models, and the probes /health, /ready, /version and /metrics."""

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from serve.api.errors import unavailable
from serve.api.generate.catalogue import Catalogue
from serve.api.generate.service import Service

READ = ["GET", "HEAD"]
"""Methods of the routes that only read: HEAD gets the headers of the reply to GET."""


def router(service: Service, version: str) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter()

    @routes.api_route("/health", methods=READ)
    async def health() -> Response:
        """Whether restarting would help: 503 once the engine's loop has died."""
        if (reason := service.death()) is not None:
            return unavailable(f"the engine has stopped: {reason}", "engine_dead").response()
        return JSONResponse({"status": "ok", "phase": service.phase.value})

    @routes.api_route("/ready", methods=READ)
    async def ready() -> Response:
        """Whether requests should come here now."""
        service.ready()
        return JSONResponse({"status": "ready"})

    @routes.api_route("/version", methods=READ)
    async def show_version() -> Response:
        return JSONResponse({"version": version})

    @routes.api_route("/metrics", methods=READ)
    async def metrics(request: Request) -> Response:
        body, content_type = await service.metrics.scrape(request.headers.get("accept", ""), service.state())
        return Response(body, headers={"content-type": content_type})

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
