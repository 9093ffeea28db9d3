import time
from collections.abc import Iterator

import httpx
import openai as openai_package
import pytest
from openai import OpenAI

from serve.config import ApiSettings
from serve.engine import QueueFull
from tests.serve.api.fakes import FakeEngine, fake_service, live

KEYS = ("first-key", "zweiter-schlüssel")


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    with live(fake_service(FakeEngine()), ApiSettings(api_keys=KEYS, version="1.2.3")) as url:
        yield url


@pytest.fixture(scope="module")
def client(locked: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked) as client:
        yield client


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_and_metrics_are_open(client: httpx.Client, path: str):
    assert client.get(path).status_code == 200


ROUTES = [
    *(("POST", "/v1/completions"), ("POST", "/v1/route"), ("GET", "/v1/models"), ("GET", "/v1/models/sql")),
    *(("GET", "/version"), ("GET", "/nope"), ("GET", "/health/"), ("GET", "/health%2F"), ("GET", "/openapi.json")),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_everything_else_is_locked(client: httpx.Client, method: str, path: str):
    reply = client.request(method, path)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    "header",
    [
        *("first-key", "Basic first-key", "Bearer", "Bearer first-ke", "Bearer first-key2"),
        *("Bearer FIRST-KEY", "Bearer first-key,zweiter-schlüssel", "first-key Bearer"),
    ],
)
def test_wrong_keys(client: httpx.Client, header: str):
    assert client.get("/v1/models", headers={"Authorization": header.encode()}).status_code == 401


@pytest.mark.parametrize("header", ["Bearer first-key", "bearer first-key", "Bearer  first-key", f"Bearer {KEYS[1]}"])
def test_right_keys(client: httpx.Client, header: str):
    assert client.get("/v1/models", headers={"Authorization": header.encode()}).status_code == 200


def test_openais_client_with_and_without_the_key(locked: str):
    with OpenAI(base_url=f"{locked}/v1", api_key=KEYS[0], max_retries=0) as openai:
        assert openai.completions.create(model="sql", prompt="hi").choices[0].text == "hello"
    with (
        OpenAI(base_url=f"{locked}/v1", api_key="no", max_retries=0) as openai,
        pytest.raises(openai_package.AuthenticationError),
    ):
        openai.completions.create(model="sql", prompt="hi")


def test_without_keys_everything_is_open(http: httpx.Client):
    assert http.get("/v1/models", headers={"Authorization": "Bearer whatever"}).status_code == 200


@pytest.mark.parametrize(
    ("settings", "key", "status"),
    [
        (ApiSettings(), None, 403),
        (ApiSettings(("k",), admin_api_keys=("root",)), "k", 403),
        (ApiSettings(("k",), admin_api_keys=("root",)), "root", 200),
        (ApiSettings(("k",), allow_priority=True), "k", 200),
    ],
)
def test_who_may_be_served_before_others(settings: ApiSettings, key: str | None, status: int):
    engine = FakeEngine()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"model": "sql", "prompt": "hi"}
    with live(fake_service(engine), settings) as url, httpx.Client(base_url=url, headers=headers) as http:
        assert http.post("/v1/completions", json={**body, "priority": 7}).status_code == 200
        chat = http.post(
            "/v1/chat/completions",
            json={"model": "sql", "messages": [{"role": "user", "content": "a"}], "priority": -1},
        )
        reply = http.post("/v1/completions", json={**body, "priority": -1})
    assert chat.status_code == reply.status_code == status
    if status == 403:
        assert (reply.json()["error"]["param"], reply.json()["error"]["code"]) == ("priority", "priority_not_allowed")
        assert [request.priority for request in engine.requests] == [7]


def test_paths_with_and_without_the_root_path_of_a_proxy():
    settings = ApiSettings(("k",), root_path="/llm")
    with live(fake_service(FakeEngine()), settings) as url, httpx.Client(base_url=url) as http:
        for prefix in ("", "/llm"):
            assert http.get(f"{prefix}/health").status_code == 200
            assert http.get(f"{prefix}/v1/models").status_code == 401
            assert http.get(f"{prefix}/v1/models", headers={"Authorization": "Bearer k"}).status_code == 200
        assert http.get("/other/health").status_code == 401


def test_one_key_cannot_take_more_than_its_part():
    engine = FakeEngine()
    engine.delay = 1000
    settings = ApiSettings(("a", "b"), max_choices_per_key=4)
    body = {"model": "sql", "prompt": "hi", "n": 3}
    keys = [{"Authorization": f"Bearer {key}"} for key in ("a", "b")]
    with live(fake_service(engine), settings) as url, httpx.Client(base_url=url, timeout=20) as http:
        with http.stream("POST", "/v1/completions", json={**body, "stream": True}, headers=keys[0]):
            refused = http.post("/v1/completions", json=body, headers=keys[0])
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "key_limit")
            assert refused.headers["retry-after"] == "1"
            assert "has 3 unfinished choices and asks for 3 more; it may have 4" in refused.json()["error"]["message"]
            assert len(engine.requests) == 3
            with http.stream("POST", "/v1/completions", json={**body, "stream": True}, headers=keys[1]) as others:
                assert others.status_code == 200
        engine.reset()
        deadline = time.monotonic() + 10
        while http.post("/v1/completions", json=body, headers=keys[0]).status_code == 429:  # until it has noticed
            assert time.monotonic() < deadline
        assert http.post("/v1/completions", json={**body, "n": 5}, headers=keys[0]).status_code == 429
        engine.refusal = QueueFull("full")
        codes = {http.post("/v1/completions", json=body, headers=keys[0]).json()["error"]["code"] for _ in range(3)}
        assert codes == {"queue_full"}  # what was refused is not counted
