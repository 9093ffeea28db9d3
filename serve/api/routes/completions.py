"""POST /v1/completions."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from serve.api.choice import Piece
from serve.api.context import context_of
from serve.api.disconnect import CLIENT_CLOSED_REQUEST, ClientGone, unless_gone
from serve.api.event_stream import EventStream
from serve.api.generation import Generation
from serve.api.prepare import prepare
from serve.api.reply import Reply
from serve.api.schemas import CompletionRequest, StreamOptions, parse_body
from serve.api.service import Service
from serve.config import ApiSettings


def router(service: Service, settings: ApiSettings) -> APIRouter:
    """The route over a service."""
    routes = APIRouter()

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        runtime = service.ready()
        body = await parse_body(request, CompletionRequest, settings.max_body_bytes)
        context = context_of(request)
        context.user = body.user
        context.request_id = body.request_id or context.request_id
        job = await prepare(service, runtime, body, settings.max_choices)
        reply = Reply(job, runtime.catalogue, runtime.codec, context.request_id, body.logprobs is not None)
        context.expert = reply.expert
        generation = Generation(runtime, job, service.metrics.http)
        generation.admit()
        if body.stream:
            options = body.stream_options or StreamOptions()
            return EventStream(_documents(generation, reply, options), reply.headers(), generation.close)
        try:
            pieces = await unless_gone(request.receive, _collect(generation, len(job.choices)))
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        finally:
            generation.close()
        return JSONResponse(reply.whole(pieces), headers=reply.headers())

    return routes


async def _collect(generation: Generation, choices: int) -> list[list[Piece]]:
    collected: list[list[Piece]] = [[] for _ in range(choices)]
    async with contextlib.aclosing(generation.pieces()) as pieces:
        async for index, piece in pieces:
            collected[index].append(piece)
    return collected


async def _documents(
    generation: Generation, reply: Reply, options: StreamOptions
) -> AsyncGenerator[dict[str, Any], None]:
    async with contextlib.aclosing(generation.pieces()) as pieces:
        async for index, piece in pieces:
            chunk = reply.chunk(index, piece)
            if options.continuous_usage_stats:
                chunk["usage"] = reply.usage()
            elif options.include_usage:
                chunk["usage"] = None
            yield chunk
    if options.include_usage:
        yield reply.last_chunk()
