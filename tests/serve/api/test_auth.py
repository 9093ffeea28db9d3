from collections.abc import Iterator

import httpx
import openai as openai_package
import pytest
from openai import OpenAI

from serve.config import ApiSettings
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
