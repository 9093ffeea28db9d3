"""Embeddings: pooled hidden states of the backbone or an expert."""

import uuid
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.api.catalogue import Target
from serve.api.errors import context_overflow, invalid
from serve.api.prefill import prefill, prompt_params
from serve.api.prompts import text_tokens
from serve.api.schemas import PooledRequest, PromptRequest
from serve.api.service import Runtime
from serve.engine import Request
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
        Request(
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
