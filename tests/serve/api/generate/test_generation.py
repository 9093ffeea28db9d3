"""What is left of a request that a fault of the program ends."""

import json
import logging
from collections.abc import AsyncIterator

import httpx
import pytest

from serve.api.app import create_app
from serve.config import ApiSettings
from serve.engine import Request
from tests.serve.api.fakes import FakeEngine, fake_service

BODY = {"model": "sql", "prompt": "x", "n": 3}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def http(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(fake_service(engine), ApiSettings())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_an_error_in_admission_ends_the_choices_before_it(engine: FakeEngine, http: httpx.AsyncClient):
    engine.refusal, engine.refuse_after = KeyError("a fault"), 2
    reply = await http.post("/v1/completions", json=BODY)
    assert reply.status_code == 500
    assert len(engine.aborted) == 2
    assert not engine.running


async def test_an_error_after_admission_does_too(
    engine: FakeEngine, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> str:
        raise KeyError("a fault")

    monkeypatch.setattr("serve.api.generate.catalogue.Catalogue.fingerprint", broken)
    reply = await http.post("/v1/completions", json=BODY)
    assert reply.status_code == 500
    assert len(engine.aborted) == 3
    assert not engine.running


async def test_an_error_in_a_stream_is_its_last_event(
    engine: FakeEngine, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
):
    def broken(_: Request) -> list[int]:
        raise KeyError("a fault")

    engine.model = broken
    caplog.set_level(logging.ERROR, "overtone.error")
    reply = await http.post("/v1/completions", json={**BODY, "stream": True})
    *_, last, done = (line for line in reply.text.split("\n\n") if line)
    assert reply.status_code == 200
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert len(engine.aborted) == 3
    assert "KeyError" in caplog.text
