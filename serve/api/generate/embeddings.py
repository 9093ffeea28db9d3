"""POST /v1/embeddings and /v1/score: pooled hidden states of the backbone or an expert, and how alike they are."""

import asyncio
import base64
import uuid
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from serve.api.context import CLIENT_CLOSED_REQUEST, ClientGone
from serve.api.errors import context_overflow, invalid
from serve.api.generate.catalogue import Target
from serve.api.generate.prefill import PromptWork, listed, prefill, prompt_params
from serve.api.generate.prompts import text_tokens
from serve.api.generate.service import Runtime
from serve.api.schemas import EmbeddingRequest, PooledRequest, PromptRequest, ScoreRequest
from serve.engine import Request as EngineRequest
from serve.metrics import HttpMetrics

MAX_INPUTS = 2048


def plain_target(runtime: Runtime, body: PromptRequest) -> Target:
    """What computes: never the router's choice, as vectors of different experts cannot be compared.

    Raises:
        ApiError: as for a completion.
    """
    return runtime.catalogue.resolve(body.model, body.experts) or Target()


def input_tokens(
    runtime: Runtime, field: str, inputs: Sequence[str | tuple[int, ...]], special: bool
) -> list[tuple[int, ...]]:
    """The tokens of each input.

    Raises:
        ApiError: 400, an input is empty, longer than the context, or holds a token that the model does not have.
    """
    if len(inputs) > MAX_INPUTS:
        raise invalid(field, f"{len(inputs)} inputs; at most {MAX_INPUTS} fit in one request")
    found = []
    for number, text in enumerate(inputs):
        tokens = text_tokens(runtime, field, text, special) if isinstance(text, str) else text
        if not tokens:
            raise invalid(field, f"input {number} is empty; it must hold at least one token")
        if max(tokens) >= runtime.vocab_size:
            raise invalid(field, f"{field}: no token {max(tokens)}; the model's vocabulary has {runtime.vocab_size}")
        if len(tokens) > runtime.catalogue.max_model_len:
            most = runtime.catalogue.max_model_len
            raise context_overflow(field, most, f"input {number} has {len(tokens)} tokens")
        found.append(tokens)
    return found


async def embeddings(
    runtime: Runtime, metrics: HttpMetrics, body: PooledRequest, target: Target, inputs: Sequence[tuple[int, ...]]
) -> NDArray[np.float32]:
    """A vector of each input: [N, hidden], of length 1 if the body wants that.

    Raises:
        ApiError: the engine refuses or fails.
    """
    unique = uuid.uuid4().hex
    requests = [
        EngineRequest(
            request_id=f"{unique}-{number}",
            prompt=tokens,
            params=prompt_params(),
            experts=target.experts,
            priority=body.priority,
            pooling=body.pooling,
        )
        for number, tokens in enumerate(inputs)
    ]
    outputs = await prefill(runtime, metrics, requests)
    vectors = np.array([output.pooled for output in outputs], dtype=np.float32)
    if body.normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


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
