"""POST /v1/classify: the probabilities of given labels."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from serve.api.catalogue import Target
from serve.api.classification import Question, Verdict, classify
from serve.api.disconnect import CLIENT_CLOSED_REQUEST, ClientGone
from serve.api.errors import invalid
from serve.api.pooled import MAX_INPUTS
from serve.api.prompt_work import PromptWork, listed
from serve.api.prompts import chat_text
from serve.api.schemas import ChatRequest, ClassifyRequest
from serve.api.service import Runtime, Service


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
