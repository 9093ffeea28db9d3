"""What the routes have in common that compute prompts alone."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import Request
from starlette.responses import JSONResponse

from serve.api.auth import check_priority
from serve.api.context import context_of
from serve.api.disconnect import unless_gone
from serve.api.errors import timed_out
from serve.api.prefill import AT_ONCE
from serve.api.schemas import BodyParser, PromptRequest
from serve.api.service import Runtime, Service
from serve.config import ApiSettings

_Body = TypeVar("_Body", bound=PromptRequest)
_Result = TypeVar("_Result")


class PromptWork:
    """Reads bodies, and runs work within the server's limits."""

    def __init__(self, service: Service, settings: ApiSettings, bodies: BodyParser):
        self.service = service
        self._settings = settings
        self._bodies = bodies

    async def read(self, request: Request, schema: type[_Body]) -> _Body:
        """The body of a request.

        Raises:
            ApiError: it is wrong, or asks for a priority that the client may not have.
        """
        body, context = await self._bodies.read(request, schema), context_of(request)
        context.user, context.request_id = body.user, body.request_id or context.request_id
        check_priority(request, body.priority, self._settings.allow_priority)
        return body

    def note(self, request: Request, runtime: Runtime, label: str, prompts: Sequence[Sequence[int]]) -> None:
        """Tell the access log what runs, and the prompts where it holds them."""
        context_of(request).expert = label
        if self._settings.log_prompts:
            context_of(request).prompts = tuple(map(runtime.codec.decode, prompts))

    async def run(self, request: Request, count: int, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Await work of `count` requests to the engine.

        Raises:
            ApiError: 429 where the API key has too many; 504 where time is over; what the work raises.
            ClientGone: the client left.
        """
        most, seconds = self._settings.max_choices_per_key, self._settings.request_timeout
        taken = self.service.key_loads.taken(context_of(request).key, min(count, AT_ONCE), most)
        with contextlib.closing(work), taken:
            try:
                async with asyncio.timeout(seconds):
                    return await unless_gone(request.receive, work)
            except TimeoutError:
                raise timed_out(seconds or 0.0) from None


def listed(data: list[dict[str, Any]], model: str, tokens: int) -> JSONResponse:
    """A list of results as OpenAI's API has it, of prompts with so many tokens."""
    usage: Mapping[str, int] = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    return JSONResponse(
        {"object": "list", "created": int(time.time()), "model": model, "data": data, "usage": usage},
        headers={"x-overtone-expert": quote(model, safe="+,")},
    )
