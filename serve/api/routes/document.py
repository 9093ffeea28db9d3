"""GET /openapi.json."""

from fastapi import APIRouter
from starlette.responses import JSONResponse

from serve.api.openapi import openapi_document


def router(version: str) -> APIRouter:
    """The route."""
    routes = APIRouter()
    document = openapi_document(version)

    @routes.get("/openapi.json")
    async def openapi() -> JSONResponse:
        return JSONResponse(document)

    return routes
