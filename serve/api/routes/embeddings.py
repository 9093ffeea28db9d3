"""POST /v1/embeddings and /v1/score: pooled hidden states, and how alike they are."""

import asyncio
import base64

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from serve.api.disconnect import CLIENT_CLOSED_REQUEST, ClientGone
from serve.api.pooled import embeddings, input_tokens, plain_target
from serve.api.prompt_work import PromptWork, listed
from serve.api.schemas import EmbeddingRequest, ScoreRequest


def router(work: PromptWork) -> APIRouter:
    """The routes over a service."""
    routes, service = APIRouter(), work.service

    @routes.post("/v1/embeddings")
    async def embed(request: Request) -> Response:
        """A vector for each text."""
        runtime, body = service.ready(), await work.read(request, EmbeddingRequest)
        target = plain_target(runtime, body)
        inputs = await asyncio.to_thread(input_tokens, runtime, "input", body.input, body.add_special_tokens)
        work.note(request, runtime, target.label, inputs)
        computing = embeddings(runtime, service.metrics.http, body, target, inputs)
        try:
            vectors = await work.run(request, len(inputs), computing)
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        written = _base64 if body.encoding_format == "base64" else _floats
        data = [
            {"object": "embedding", "index": index, "embedding": written(vector)}
            for index, vector in enumerate(vectors)
        ]
        return listed(data, target.label, sum(map(len, inputs)))

    @routes.post("/v1/score")
    async def score(request: Request) -> Response:
        """How alike texts are."""
        runtime, body = service.ready(), await work.read(request, ScoreRequest)
        target = plain_target(runtime, body)
        texts = (*body.text_1, *body.text_2)
        inputs = await asyncio.to_thread(input_tokens, runtime, "text_2", texts, body.add_special_tokens)
        work.note(request, runtime, target.label, inputs)
        computing = embeddings(runtime, service.metrics.http, body, target, inputs)
        try:
            vectors = await work.run(request, len(inputs), computing)
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        first, second = vectors[: len(body.text_1)], vectors[len(body.text_1) :]
        scores = (first * second).sum(axis=1)
        data = [{"object": "score", "index": index, "score": float(one)} for index, one in enumerate(scores)]
        return listed(data, target.label, sum(map(len, inputs)))

    return routes


def _floats(vector: NDArray[np.float32]) -> list[float]:
    found: list[float] = vector.tolist()
    return found


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
