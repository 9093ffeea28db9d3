"""The body of POST /v1/route."""

from typing import Annotated

from pydantic import Field

from serve.api.schemas.body import Body, ModelName
from serve.api.schemas.generation import MAX_ROUTED
from serve.api.schemas.prompt import TextPromptField


class RouteRequest(Body):
    """Ask for decisions without generating.

    `model` may be left out, and where it is given it must be a name that routes; `top` limits the scores shown.
    `router_top_k` is that of a completion.
    """

    prompt: TextPromptField
    model: ModelName | None = None
    top: Annotated[int, Field(ge=1)] | None = None
    router_top_k: Annotated[int, Field(ge=1, le=MAX_ROUTED)] | None = None
