import dataclasses

import httpx
import pytest

from tests.serve.api.fakes import FakeEngine, fake_service, live


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


def test_a_bundle_without_a_router():
    service = fake_service(FakeEngine())
    service.runtime = dataclasses.replace(service.runtime, router=None)
    with live(service) as url, httpx.Client(base_url=url) as client:
        for path in ("/v1/route", "/v1/completions"):
            reply = client.post(path, json={"model": "auto", "prompt": "a"})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model")
            assert "no router" in reply.json()["error"]["message"]
        assert client.post("/v1/completions", json={"model": "sql", "prompt": "a"}).status_code == 200
