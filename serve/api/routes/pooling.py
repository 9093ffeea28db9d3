"""POST /v1/embeddings, /v1/score and /v1/classify: what a prompt's forward pass tells, without generating."""

import asyncio
import base64
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from starlette.responses import JSONResponse

from serve.api.auth import check_priority
from serve.api.catalogue import Target
from serve.api.classification import Question, Verdict, classify
from serve.api.context import context_of
from serve.api.disconnect import CLIENT_CLOSED_REQUEST, ClientGone, unless_gone
from serve.api.errors import invalid
from serve.api.pooled import MAX_INPUTS, embeddings, input_tokens, plain_target
from serve.api.prefill import AT_ONCE
from serve.api.prompts import chat_text
from serve.api.schemas import (
    BodyParser,
    ChatRequest,
    ClassifyRequest,
    EmbeddingRequest,
    PromptRequest,
    ScoreRequest,
)
from serve.api.service import Runtime, Service
from serve.config import ApiSettings

_Body = TypeVar("_Body", bound=PromptRequest)
_Result = TypeVar("_Result")


def router(service: Service, settings: ApiSettings, bodies: BodyParser) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter()

    async def read(request: Request, schema: type[_Body]) -> _Body:
        body, context = await bodies.read(request, schema), context_of(request)
        context.user, context.request_id = body.user, body.request_id or context.request_id
        check_priority(request, body.priority, settings.allow_priority)
        return body

    async def computed(request: Request, count: int, work: Coroutine[Any, Any, _Result]) -> _Result:
        most = settings.max_choices_per_key
        with service.key_loads.taken(context_of(request).key, min(count, AT_ONCE), most):
            return await unless_gone(request.receive, work)

    @routes.post("/v1/embeddings")
    async def embed(request: Request) -> Response:
        """A vector for each text."""
        runtime, body = service.ready(), await read(request, EmbeddingRequest)
        target = plain_target(runtime, body)
        context_of(request).expert = target.label
        inputs = await asyncio.to_thread(input_tokens, runtime, "input", body.input, body.add_special_tokens)
        try:
            work = embeddings(runtime, service.metrics.http, body, target, inputs)
            vectors = await computed(request, len(inputs), work)
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        written = _base64 if body.encoding_format == "base64" else _floats
        data = [
            {"object": "embedding", "index": index, "embedding": written(vector)}
            for index, vector in enumerate(vectors)
        ]
        return _listed(data, target.label, sum(map(len, inputs)))

    @routes.post("/v1/score")
    async def score(request: Request) -> Response:
        """How alike texts are."""
        runtime, body = service.ready(), await read(request, ScoreRequest)
        target = plain_target(runtime, body)
        context_of(request).expert = target.label
        texts = (*body.text_1, *body.text_2)
        inputs = await asyncio.to_thread(input_tokens, runtime, "text_2", texts, body.add_special_tokens)
        try:
            work = embeddings(runtime, service.metrics.http, body, target, inputs)
            vectors = await computed(request, len(inputs), work)
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        first, second = vectors[: len(body.text_1)], vectors[len(body.text_1) :]
        scores = (first * second).sum(axis=1)
        data = [{"object": "score", "index": index, "score": float(one)} for index, one in enumerate(scores)]
        return _listed(data, target.label, sum(map(len, inputs)))

    @routes.post("/v1/classify")
    async def classes(request: Request) -> Response:
        """The probabilities of some labels."""
        runtime, body = service.ready(), await read(request, ClassifyRequest)
        if (count := len(body.labels) * len(body.input or (1,))) > MAX_INPUTS:
            raise invalid("labels", f"prompts × labels are {count}; at most {MAX_INPUTS} fit in one request")
        questions = await asyncio.to_thread(_questions, service, runtime, body)
        label = ",".join(dict.fromkeys(one.target.label for one in questions))
        context_of(request).expert = label
        try:
            mean = body.normalization == "mean"
            work = classify(runtime, service.metrics.http, questions, mean, body.priority)
            verdicts = await computed(request, count, work)
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        data = [
            _classified(index, body, one.target, verdict)
            for index, (one, verdict) in enumerate(zip(questions, verdicts, strict=True))
        ]
        return _listed(data, label, sum(len(one.prompt) for one in questions))

    return routes


def _questions(service: Service, runtime: Runtime, body: ClassifyRequest) -> list[Question]:
    forced = runtime.catalogue.resolve(body.model, body.experts)
    if body.messages is not None:
        chat = ChatRequest(messages=body.messages)
        routed = chat.last_user_text
        if forced is None and routed is None:
            raise invalid("messages", "routing needs a message of the user; name an expert, or 'backbone'")
        target = forced or service.target(runtime, routed or "")
        return [Question.of(runtime, target, chat_text(runtime, chat), body.labels, special=False)]
    return [
        Question.of(runtime, forced or service.target(runtime, text), text, body.labels, body.add_special_tokens)
        for text in body.input or ()
    ]


def _classified(index: int, body: ClassifyRequest, target: Target, verdict: Verdict) -> dict[str, Any]:
    best = max(range(len(body.labels)), key=verdict.logprobs.__getitem__)
    return {
        "object": "classification",
        "index": index,
        "label": body.labels[best],
        "probs": list(verdict.probs),
        "logprobs": list(verdict.logprobs),
        "num_classes": len(body.labels),
        "expert": target.label,
        "confidence": target.confidence,
    }


def _listed(data: list[dict[str, Any]], model: str, tokens: int) -> JSONResponse:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    return JSONResponse(
        {"object": "list", "created": int(time.time()), "model": model, "data": data, "usage": usage},
        headers={"x-overtone-expert": model},
    )


def _floats(vector: NDArray[np.float32]) -> list[float]:
    found: list[float] = vector.tolist()
    return found


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
