"""The ASGI application."""

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serve import ui
from serve.api import openapi, status
from serve.api.admin import routes as admin_routes
from serve.api.admin.experts import ExpertAdmin
from serve.api.context import CLIENT_CLOSED_REQUEST, ContextMiddleware
from serve.api.errors import ApiError, did_you_mean
from serve.api.generate import classification, embeddings, preview
from serve.api.generate.prefill import PromptWork
from serve.api.generate.service import Service
from serve.api.openai import anthropic, completions, responses
from serve.api.schemas import BodyParser
from serve.api.security.auth import OPEN_PATHS, ApiKeyMiddleware, KeyRing
from serve.api.security.limits import PROBES, RequestLimitsMiddleware, TrailingSlashMiddleware
from serve.config import ApiSettings

_PATHS = tuple(dict.fromkeys(path for _, path in openapi.OPERATIONS))


def create_app(service: Service, settings: ApiSettings, keys: KeyRing | None = None) -> FastAPI:
    """Put routes, error handlers and layers together.

    Args:
        service: the model, or what will hold it once it is loaded.
        settings: keys and limits.
        keys: those of the settings, if the caller wants to read them again; None: they are made from the settings.
    """
    app = FastAPI(title="Overtone", openapi_url=None, redirect_slashes=False)
    app.root_path = settings.root_path
    for router in routers(service, settings):
        app.include_router(router)
    if settings.ui:
        app.include_router(ui.router(settings.examples, settings.ui_chat))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_middleware(TrailingSlashMiddleware)  # within the keys: what is open is open under its exact path alone
    app.add_middleware(ApiKeyMiddleware, keys=keys or KeyRing(settings), open_paths=OPEN_PATHS)
    if settings.allowed_origins:  # outside of the keys: a browser asks first, and without one
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # clients send additional headers, such as OpenAI's x-stainless-*
            expose_headers=[
                "retry-after",
                "x-overtone-confidence",
                "x-overtone-session",
                "x-overtone-expert",
                "x-overtone-tools",
                "x-request-id",
            ],
        )
    app.add_middleware(RequestLimitsMiddleware, settings=settings)
    app.add_middleware(ContextMiddleware, metrics=service.metrics.http, quiet_paths=PROBES)
    app.add_middleware(service.tracing.wrap)
    return app


def routers(service: Service, settings: ApiSettings) -> tuple[APIRouter, ...]:
    """The API's routes."""
    bodies = BodyParser(settings.max_body_bytes)
    work = PromptWork(service, settings, bodies)
    admin = ExpertAdmin(service, settings)
    return (
        completions.router(service, settings, bodies),
        responses.router(service, settings, bodies),
        anthropic.router(service, settings, bodies),
        embeddings.router(work),
        classification.router(work),
        preview.router(service, settings, bodies),
        admin_routes.router(admin, bodies),
        status.router(service, settings.version),
        openapi.router(settings.version),
    )


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _client_gone(_: Request, error: Exception) -> Response:
    """The client disconnected while it sent its body. Only the log and the counters see this response."""
    assert isinstance(error, ClientDisconnect)
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _http_error(request: Request, error: Exception) -> Response:
    """The framework's own refusals, 404 and 405, in OpenAI's words."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    headers = dict(error.headers or {})
    if allowed := headers.get("Allow"):
        headers["Allow"] = ", ".join(sorted(allowed.split(", ")))  # which the framework joins from a set
    message = {
        404: f"there is no {path}{did_you_mean(path, _PATHS)}",
        405: f"{path} does not take {request.method}; it takes {headers.get('Allow', 'other methods')}",
    }.get(error.status_code, str(error.detail))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return ApiError(error.status_code, message, code=code, headers=headers).response()
