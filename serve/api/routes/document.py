"""GET /openapi.json."""

from fastapi import APIRouter
from starlette.responses import JSONResponse

from serve.api.openapi import openapi_document
from serve.api.routes import READ


def router(version: str) -> APIRouter:
    """The route."""
    routes = APIRouter()
    document = openapi_document(version)

    @routes.api_route("/openapi.json", methods=READ)
    async def openapi() -> JSONResponse:
        return JSONResponse(document)

    return routes
