import asyncio
import dataclasses
import threading

import httpx
import numpy as np
import pytest

from serve.api.generate.prepare import prepare
from serve.api.schemas import CompletionRequest
from serve.decision import Decision
from tests.serve.api.fakes import MAX_MODEL_LEN, FakeEngine, fake_service, live


def test_a_decision_without_generating(http: httpx.Client, engine: FakeEngine):
    reply = http.post("/v1/route", json={"prompt": "a poetry"})
    assert reply.json() == {
        "object": "list",
        "data": [
            {
                "object": "route.decision",
                "index": 0,
                "expert": "poetry",
                "model": "poetry",
                "confidence": 0.9,
                "scores": {"poetry": 0.9, "sql": 0.05},
            }
        ],
    }
    assert engine.requests == []


def test_several_prompts_and_few_scores(http: httpx.Client):
    reply = http.post("/v1/route", json={"prompt": ["sql", "hm"], "model": "auto", "top": 1})
    first, second = reply.json()["data"]
    assert (first["expert"], first["scores"]) == ("sql", {"sql": 0.9})
    assert (second["expert"], second["model"], second["confidence"]) == (None, "backbone", 0.6)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": [1, 2]}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ["a"] * 257}, 400, "prompt"),
        ({"prompt": "a", "model": "sql"}, 400, "model"),
        ({"prompt": "a", "model": "nope"}, 404, "model"),
        ({"prompt": "a", "top": 0}, 400, "top"),
        ({"prompt": "a", "max_tokens": 1}, 400, "max_tokens"),
    ],
)
def test_wrong_bodies(http: httpx.Client, body, status, param):
    reply = http.post("/v1/route", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize("prompt", ["é" * (MAX_MODEL_LEN // 2) + "x", "sql " * 2_000_000])
def test_a_prompt_longer_than_the_context_is_refused_before_it_is_routed(http: httpx.Client, prompt: str):
    fits = http.post("/v1/route", json={"prompt": prompt.encode()[:MAX_MODEL_LEN].decode(errors="ignore")})
    assert fits.status_code == 200
    error = http.post("/v1/route", json={"prompt": ["sql", prompt]}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, your" in error["message"]
    assert f"prompt of {len(prompt)} characters has more tokens than that" in error["message"]


def test_a_bundle_without_a_router():
    service = fake_service(FakeEngine())
    service.runtime = dataclasses.replace(service.runtime, router=None)
    with live(service) as url, httpx.Client(base_url=url) as client:
        for path in ("/v1/route", "/v1/completions"):
            reply = client.post(path, json={"model": "auto", "prompt": "a"})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model")
            assert "no router" in reply.json()["error"]["message"]
        assert client.post("/v1/completions", json={"model": "sql", "prompt": "a"}).status_code == 200


class ThreadRouter:
    """Has many experts, and notes on which thread it is asked."""

    def __init__(self, experts: int):
        self.names = tuple(f"e{number}" for number in range(experts))
        self.threads: set[threading.Thread] = set()

    encodes = False

    def decide_chat(self, turns, top_k=None) -> Decision:
        self.threads.add(threading.current_thread())
        return Decision(None, 1.0, (), np.zeros(0))


@pytest.mark.parametrize(("experts", "prompts", "inline"), [(2, 200, True), (5000, 1, True), (5000, 3, False)])
async def test_much_routing_leaves_the_event_loop(experts: int, prompts: int, inline: bool):
    service, router = fake_service(FakeEngine()), ThreadRouter(experts)
    runtime = dataclasses.replace(service.ready(), router=router)
    body = CompletionRequest.model_validate({"model": "auto", "prompt": ["sql"] * prompts, "max_tokens": 1})
    job = await prepare(service, runtime, body, 256)
    assert len(job.choices) == prompts
    assert (router.threads == {threading.current_thread()}) == inline


def test_experts_that_are_close_are_mixed_on_request(http: httpx.Client, engine: FakeEngine):
    decision = http.post("/v1/route", json={"prompt": "sql poetry", "router_top_k": 2}).json()["data"][0]
    assert decision["experts"] == {"sql": 0.5, "poetry": 0.5}
    alone = http.post("/v1/route", json={"prompt": "sql", "router_top_k": 2}).json()["data"][0]
    assert "experts" not in alone
    body = {"model": "auto", "prompt": "sql poetry", "max_tokens": 1, "router_top_k": 2}
    assert http.post("/v1/completions", json=body).json()["choices"][0]["expert"] == "sql+poetry"
    assert engine.requests[-1].experts == (("sql", 0.5), ("poetry", 0.5))
    error = http.post("/v1/completions", json=body | {"router_top_k": 9})
    assert (error.status_code, error.json()["error"]["param"]) == (400, "router_top_k")


def test_a_router_that_encodes_is_asked_off_the_event_loop():
    service, router = fake_service(FakeEngine()), ThreadRouter(2)
    router.encodes = True
    runtime = dataclasses.replace(service.ready(), router=router)
    body = CompletionRequest.model_validate({"model": "auto", "prompt": "sql", "max_tokens": 1})
    asyncio.run(prepare(service, runtime, body, 256))
    assert threading.main_thread() not in router.threads


def test_a_chat_keeps_its_expert_until_a_message_is_clearly_anothers(http: httpx.Client):
    def asked(*texts: str) -> tuple[str, str | None]:
        messages = [{"role": "user", "content": text} for text in texts]
        reply = http.post("/v1/chat/completions", json={"model": "auto", "messages": messages, "max_tokens": 1})
        return reply.headers["x-overtone-expert"], reply.headers.get("x-overtone-session")

    assert asked("sql, please") == ("sql", None)
    assert asked("sql, please", "shorter") == ("sql", "kept")
    assert asked("sql, please", "shorter", "a poetry") == ("poetry", "switched")
    assert asked("hello", "a poetry") == ("poetry", None)
