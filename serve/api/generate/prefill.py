"""Requests that compute prompts alone: nothing is generated."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import Request
from starlette.responses import JSONResponse

from serve.api.context import context_of, unless_gone
from serve.api.errors import expert_unavailable, internal, timed_out, unavailable
from serve.api.generate.generation import refusal
from serve.api.generate.service import Runtime, Service
from serve.api.schemas import BodyParser, PromptRequest
from serve.api.security.auth import check_priority
from serve.config import ApiSettings
from serve.engine import EngineError, Output, SamplingParams
from serve.engine import Request as EngineRequest
from serve.metrics import HttpMetrics

AT_ONCE = 64
"""Requests that one client may have in the engine at once; the others of its batch wait here and not in the queue."""


def prompt_params(prompt_logprobs: int | None = None) -> SamplingParams:
    """Nothing to draw."""
    return SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=prompt_logprobs)


async def prefill(runtime: Runtime, metrics: HttpMetrics, requests: Sequence[EngineRequest]) -> list[Output]:
    """The last output of each request, in order.

    Raises:
        ApiError: the engine rejects or ends a request.
    """
    outputs: list[Output] = []
    for start in range(0, len(requests), AT_ONCE):
        outputs += await _together(runtime, metrics, requests[start : start + AT_ONCE])
    return outputs


async def _together(runtime: Runtime, metrics: HttpMetrics, requests: Sequence[EngineRequest]) -> list[Output]:
    streams, outputs = [], list[Output]()
    try:
        for request in requests:
            streams.append(runtime.engine.generate(request))
            metrics.admitted(name for name, _ in request.experts)
        for stream in streams:
            await stream.admitted()
        for stream in streams:
            async for output in stream:
                _check(output)
                if output.finish_reason is not None:
                    outputs.append(output)
                    break
            else:
                raise unavailable("the engine has stopped", "engine_dead")
    except EngineError as error:
        raise refusal(error) from error
    finally:
        for number, request in enumerate(requests[: len(streams)]):
            done = number < len(outputs)
            metrics.finished("length" if done else "abort", (name for name, _ in request.experts))
            if not done:
                runtime.engine.abort(request.request_id)
    return outputs


def _check(output: Output) -> None:
    if output.expert_error is not None:
        raise expert_unavailable(output.expert_error)
    if output.finish_reason == "error":
        raise internal(output.error or "the engine aborted the request")
    if output.finish_reason == "abort":
        raise unavailable("the server stopped before the request was finished", "aborted")


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
        """Give the access log what runs and, if it records them, the prompts."""
        context_of(request).expert = label
        if self._settings.log_prompts:
            context_of(request).prompts = tuple(map(runtime.codec.decode, prompts))

    async def run(self, request: Request, count: int, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Await work of `count` requests to the engine.

        Raises:
            ApiError: 429 if the API key has too many; 504 if time is over; what the work raises.
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
    """A list of results in the format of OpenAI's API, with the number of prompt tokens."""
    usage: Mapping[str, int] = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    return JSONResponse(
        {"object": "list", "created": int(time.time()), "model": model, "data": data, "usage": usage},
        headers={"x-overtone-expert": quote(model, safe="+,")},
    )
