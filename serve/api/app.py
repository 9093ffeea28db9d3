"""The ASGI application."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve import ui
from serve.api.auth import ApiKeyMiddleware
from serve.api.context import ContextMiddleware
from serve.api.errors import ApiError, did_you_mean
from serve.api.routes import chat, completions, decisions, models, probes
from serve.api.service import Service
from serve.config import ApiSettings


def create_app(service: Service, settings: ApiSettings) -> FastAPI:
    """Put routes, error handlers and layers together.

    Args:
        service: the model, or what will hold it once it is loaded.
        settings: keys and limits.
    """
    app = FastAPI(title="Overtone", openapi_url=None, redirect_slashes=False)
    app.include_router(chat.router(service, settings))
    app.include_router(completions.router(service, settings))
    app.include_router(decisions.router(service, settings))
    app.include_router(models.router(service))
    app.include_router(probes.router(service, settings.version))
    if settings.ui:
        app.include_router(ui.router(settings.examples))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    if settings.api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=settings.api_keys, open_paths=probes.OPEN_PATHS)
    app.add_middleware(ContextMiddleware, metrics=service.metrics.http)
    app.add_middleware(service.tracing.wrap)
    app.state.paths = tuple(route.path for route in app.routes if isinstance(route, Route))
    return app


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    """The framework's own refusals, 404 and 405, in OpenAI's words."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = {
        404: f"there is no {path}{did_you_mean(path, request.app.state.paths)}",
        405: f"{path} does not take {request.method}; it takes {(error.headers or {}).get('Allow', 'other methods')}",
    }.get(error.status_code, str(error.detail))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return ApiError(error.status_code, message, code=code, headers=error.headers or {}).response()
