"""One request for text, from its checked body to its reply: a completion, a chat, or what is translated to a chat."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request, Response
from starlette.responses import JSONResponse

from serve.api.context import CLIENT_CLOSED_REQUEST, ClientGone, context_of, unless_gone
from serve.api.errors import ApiError
from serve.api.generate.generation import Generation
from serve.api.generate.prepare import prepare
from serve.api.generate.reply import EventStream, Reply
from serve.api.generate.service import Service
from serve.api.grammar.structure import asked_structure
from serve.api.schemas import BodyParser, ChatRequest, GenerationRequest
from serve.api.schemas.translated import TranslatedRequest
from serve.api.security.auth import check_priority
from serve.api.text.choice import Piece
from serve.config import ApiSettings
from serve.engine import Draining, EngineDead, InvalidRequest, PromptTooLong, UnknownExpert

_REASONS = {
    "context_length_exceeded": PromptTooLong.__name__,
    "draining": Draining.__name__,
    "engine_dead": EngineDead.__name__,
    "loading": "Loading",
    "model_not_found": UnknownExpert.__name__,
}
"""Code of a refusal that is made before the engine is asked → how it is counted; all others are `InvalidRequest`."""


_INLINE_RECORDS = 512
"""A reply with the log-probabilities of more tokens is put together off the event loop."""


async def answer(
    request: Request,
    service: Service,
    settings: ApiSettings,
    bodies: BodyParser,
    schema: type[GenerationRequest] | type[TranslatedRequest],
    reply_type: type[Reply],
) -> Response:
    """Read, prepare, admit, generate, and reply in one piece or as a stream.

    Raises:
        ApiError: the request cannot be served; nothing of it is left in the engine.
    """
    context = context_of(request)
    asked: GenerationRequest | TranslatedRequest | None = None
    try:
        runtime = service.ready()
        asked = await bodies.read(request, schema)
        body = asked.chat if isinstance(asked, TranslatedRequest) else asked
        context.user = body.end_user
        context.request_id = body.request_id or context.request_id
        check_priority(request, body.priority, settings.allow_priority)
        preparing = prepare(service, runtime, body, settings.max_choices)
        # A grammar may have to wait for others.
        job = await (unless_gone(request.receive, preparing) if _structured(body) else preparing)
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except ApiError as error:
        # The engine counts those that it refuses itself.
        service.metrics.engine.on_reject(_REASONS.get(error.code or "", InvalidRequest.__name__))
        if isinstance(asked, TranslatedRequest):
            asked.renamed(error)
        raise
    context.expert = job.label
    if settings.log_prompts:
        context.prompts = tuple(job.prompt_texts(runtime.codec))
    with contextlib.ExitStack() as held:
        held.enter_context(service.key_loads.taken(context.key, len(job.choices), settings.max_choices_per_key))
        generation = Generation(runtime, job, service.metrics.http, settings.request_timeout)
        held.callback(generation.close)
        await generation.admit()
        fingerprint = runtime.catalogue.fingerprint(generation.weights())
        reply = reply_type(asked, job, runtime.codec, context.request_id, fingerprint, body.top_tokens is not None)
        if body.stream:
            events = _documents(generation, reply)
            return EventStream(events, reply, settings.sse_ping_seconds, held.pop_all().close)
        try:
            pieces = await unless_gone(request.receive, _collect(generation, len(job.choices)))
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    if sum(len(piece.records) for choice in pieces for piece in choice) > _INLINE_RECORDS:
        return await asyncio.to_thread(_whole, reply, pieces)
    return _whole(reply, pieces)


def _structured(body: GenerationRequest) -> bool:
    """Whether a grammar may have to be compiled."""
    return asked_structure(body) is not None or (isinstance(body, ChatRequest) and body.strict_tools)


def _whole(reply: Reply, pieces: list[list[Piece]]) -> JSONResponse:
    return JSONResponse(reply.whole(pieces), headers=reply.headers())


async def _collect(generation: Generation, choices: int) -> list[list[Piece]]:
    collected: list[list[Piece]] = [[] for _ in range(choices)]
    async with contextlib.aclosing(generation.pieces()) as pieces:
        async for number, piece in pieces:
            collected[number].append(piece)
    return collected


async def _documents(generation: Generation, reply: Reply) -> AsyncGenerator[dict[str, Any], None]:
    for document in reply.opening():
        yield document
    async with contextlib.aclosing(generation.pieces()) as pieces:
        async for number, piece in pieces:
            for document in reply.chunks(number, piece):
                yield document
    for document in reply.closing():
        yield document
