"""Probes for orchestrators and the scrape: /health, /ready, /version, /metrics."""

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from serve.api.errors import unavailable
from serve.api.routes import READ
from serve.api.service import Service

PROBES = frozenset({"/health", "/ready", "/metrics"})
"""What orchestrators and Prometheus ask every few seconds."""

OPEN_PATHS = PROBES | {"/"}
"""Answered without an API key; / is the page, which asks for one itself."""


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

    return routes
