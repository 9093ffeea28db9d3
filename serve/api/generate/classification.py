"""POST /v1/classify: which of some labels continues a prompt most likely."""

import asyncio
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from serve.api.context import CLIENT_CLOSED_REQUEST, ClientGone
from serve.api.errors import context_overflow, invalid
from serve.api.generate.catalogue import Target
from serve.api.generate.embeddings import MAX_INPUTS
from serve.api.generate.prefill import PromptWork, listed, prefill, prompt_params
from serve.api.generate.prompts import chat_text, text_tokens
from serve.api.generate.service import Runtime, Service
from serve.api.schemas import ChatRequest, ClassifyRequest
from serve.engine import Output
from serve.engine import Request as EngineRequest
from serve.metrics import HttpMetrics


@dataclass(frozen=True)
class Question:
    """One prompt with its labels.

    Attributes:
        target: what answers.
        prompt: tokens of the prompt alone.
        texts: for each label, the tokens of prompt and label together.
        start: the first of them that is scored: up to there, all are the prompt's.
    """

    target: Target
    prompt: tuple[int, ...]
    texts: tuple[tuple[int, ...], ...]
    start: int

    @classmethod
    def of(cls, runtime: Runtime, target: Target, text: str, labels: Sequence[str], special: bool) -> "Question":
        """Tokenise. A label's first characters may share a token with the prompt's last ones.

        Raises:
            ApiError: 400, prompt and label are longer than the context, or the prompt is empty.
        """
        prompt = text_tokens(runtime, "input", text, special)
        texts = tuple(text_tokens(runtime, "input", text + label, special) for label in labels)
        start = min(_common(prompt, whole) for whole in texts)
        # A label that another label begins with would have no token to score.
        start = min(start, *(len(whole) - 1 for whole in texts))
        if start < 1:
            raise invalid("input", "the prompt is empty, or shares its first token with a label; begin it with a word")
        if (longest := max(map(len, texts))) > (most := runtime.catalogue.max_model_len):
            raise context_overflow("input", most, f"prompt and label have {longest} tokens")
        return cls(target, prompt, texts, start)


@dataclass(frozen=True)
class Verdict:
    """What a question's labels are worth.

    Attributes:
        logprobs: of each label, given the prompt.
        probs: of each label among the labels.
    """

    logprobs: tuple[float, ...]
    probs: tuple[float, ...]


async def classify(
    runtime: Runtime, metrics: HttpMetrics, questions: Sequence[Question], mean: bool, priority: int
) -> list[Verdict]:
    """Score all labels of all questions.

    Args:
        runtime: the model.
        metrics: counts the requests.
        questions: what to score.
        mean: divide a label's log-probability by its number of tokens.
        priority: of the requests.

    Raises:
        ApiError: the engine refuses or fails.
    """
    unique = uuid.uuid4().hex
    # The prompts first: the labels find them in the prefix cache.
    await prefill(
        runtime,
        metrics,
        [
            EngineRequest(f"{unique}-{number}", one.prompt[: one.start], prompt_params(), one.target.experts, priority)
            for number, one in enumerate(questions)
        ],
    )
    requests = [
        EngineRequest(
            request_id=f"{unique}-{number}-{label}",
            prompt=text,
            params=prompt_params(0),
            experts=one.target.experts,
            priority=priority,
            prompt_counts=False,
            scored_from=one.start,
        )
        for number, one in enumerate(questions)
        for label, text in enumerate(one.texts)
    ]
    outputs = iter(await prefill(runtime, metrics, requests))
    return [_verdict([_logprob(next(outputs), one.start, mean) for _ in one.texts]) for one in questions]


def _logprob(output: Output, start: int, mean: bool) -> float:
    found = [token.logprob or 0.0 for token in (output.prompt_logprobs or ())[start:] if token is not None]
    return sum(found) / (len(found) if mean else 1)


def _verdict(logprobs: Sequence[float]) -> Verdict:
    highest = max(logprobs)
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    return Verdict(tuple(logprobs), tuple(weight / sum(weights) for weight in weights))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    pairs = zip(first, second, strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def router(work: PromptWork) -> APIRouter:
    """The route over a service."""
    routes, service = APIRouter(), work.service

    @routes.post("/v1/classify")
    async def classes(request: Request) -> Response:
        """Score the labels."""
        runtime, body = service.ready(), await work.read(request, ClassifyRequest)
        if (count := len(body.labels) * len(body.input or (1,))) > MAX_INPUTS:
            raise invalid("labels", f"prompts × labels are {count}; at most {MAX_INPUTS} fit in one request")
        questions = await asyncio.to_thread(_questions, service, runtime, body)
        label = ",".join(dict.fromkeys(one.target.label for one in questions))
        work.note(request, runtime, label, [one.prompt for one in questions])
        mean = body.normalization == "mean"
        computing = classify(runtime, service.metrics.http, questions, mean, body.priority)
        try:
            verdicts = await work.run(request, count, computing)
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        data = [
            _classified(index, body, one.target, verdict)
            for index, (one, verdict) in enumerate(zip(questions, verdicts, strict=True))
        ]
        return listed(data, label, sum(len(one.prompt) for one in questions))

    return routes


def _questions(service: Service, runtime: Runtime, body: ClassifyRequest) -> list[Question]:
    forced = runtime.catalogue.resolve(body.model, body.experts)
    if body.messages is not None:
        chat = ChatRequest(messages=body.messages)
        routed = chat.user_texts
        if forced is None and not routed:
            raise invalid("messages", "routing needs a message of the user; name an expert, or 'backbone'")
        target = forced or service.target(runtime, routed)
        return [Question.of(runtime, target, chat_text(runtime.replies(target), chat), body.labels, special=False)]
    return [
        Question.of(runtime, forced or service.target(runtime, (text,)), text, body.labels, body.add_special_tokens)
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
