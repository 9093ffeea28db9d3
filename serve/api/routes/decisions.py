"""POST /v1/route: what the router would do, without doing it."""

import asyncio
from heapq import nsmallest
from typing import Any

from fastapi import APIRouter, Request

from serve.api.catalogue import AUTO, BACKBONE
from serve.api.errors import invalid
from serve.api.prompts import check_length
from serve.api.schemas import BodyParser, RouteRequest
from serve.api.service import Runtime, Service
from serve.config import ApiSettings


def router(service: Service, settings: ApiSettings, bodies: BodyParser) -> APIRouter:
    """The route over a service."""
    routes = APIRouter()

    @routes.post("/v1/route")
    async def route(request: Request) -> dict[str, Any]:
        runtime = service.ready()
        body = await bodies.read(request, RouteRequest)
        if body.model is not None and runtime.catalogue.resolve(body.model) is not None:
            raise invalid("model", f"{body.model!r} is not routed; leave model out, or name {AUTO!r}")
        if len(body.prompt) > settings.max_choices:
            raise invalid("prompt", f"{len(body.prompt)} prompts; at most {settings.max_choices} fit in one request")
        return {"object": "list", "data": await asyncio.to_thread(_decisions, service, runtime, body)}

    return routes


def _decisions(service: Service, runtime: Runtime, body: RouteRequest) -> list[dict[str, Any]]:
    for prompt in body.prompt:
        check_length(runtime, "prompt", prompt)
    decisions = []
    for index, prompt in enumerate(body.prompt):
        decision = service.route(runtime, prompt)
        ranked = nsmallest(
            body.top or len(decision.scores), decision.scores.items(), key=lambda score: (-score[1], score[0])
        )
        decisions.append(
            {
                "object": "route.decision",
                "index": index,
                "expert": decision.expert,
                "model": decision.expert or BACKBONE,
                "confidence": decision.confidence,
                "scores": dict(ranked),
            }
        )
    return decisions
