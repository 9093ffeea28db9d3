"""POST /v1/route: what the router would do, without doing it."""

from functools import partial
from heapq import nsmallest
from typing import Any

from fastapi import APIRouter, Request

from serve.api.catalogue import AUTO, BACKBONE
from serve.api.errors import invalid
from serve.api.prompts import check_length
from serve.api.schemas import BodyParser, RouteRequest
from serve.api.service import Runtime, Service
from serve.config import ApiSettings
from serve.decision import Decision


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
        return {"object": "list", "data": await service.off_loop(partial(_decisions, service, runtime, body))}

    return routes


def _decisions(service: Service, runtime: Runtime, body: RouteRequest) -> list[dict[str, Any]]:
    for prompt in body.prompt:
        check_length(runtime, "prompt", prompt)
    return [
        _described(index, decision, body.top)
        for index, decision in enumerate(service.route_all(runtime, body.prompt, body.router_top_k))
    ]


def _described(index: int, decision: Decision, top: int | None) -> dict[str, Any]:
    scores = decision.scores.items()
    described = {
        "object": "route.decision",
        "index": index,
        "expert": decision.expert,
        "model": decision.expert or BACKBONE,
        "confidence": decision.confidence,
        "scores": dict(nsmallest(top or len(scores), scores, key=lambda score: (-score[1], score[0]))),
    }
    return described | {"experts": dict(decision.mix)} if len(decision.mix) > 1 else described
