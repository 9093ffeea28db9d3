"""Probes for orchestrators and the scrape: /health, /ready, /version, /metrics."""

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from serve.api.errors import unavailable
from serve.api.service import Service

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/metrics"})
"""Answered without an API key; / is the page, which asks for one itself."""


def router(service: Service, version: str) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> Response:
        """Whether restarting would help: 503 once the engine's loop has died."""
        if (reason := service.death()) is not None:
            return unavailable(f"the engine has stopped: {reason}", "engine_dead").response()
        return JSONResponse({"status": "ok", "phase": service.phase.value})

    @routes.get("/ready")
    async def ready() -> Response:
        """Whether requests should come here now."""
        service.ready()
        return JSONResponse({"status": "ready"})

    @routes.get("/version")
    async def show_version() -> Response:
        return JSONResponse({"version": version})

    @routes.get("/metrics")
    async def metrics(request: Request) -> Response:
        body, content_type = await service.metrics.scrape(request.headers.get("accept", ""), service.state())
        return Response(body, headers={"content-type": content_type})

    return routes
