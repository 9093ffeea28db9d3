"""What the HTTP proxy's layers make of an application that answers, does not, or is lost."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from serve.api.errors import unavailable
from serve.cluster import proxy
from serve.cluster.proxy import error_document, middlewares

Answer = Callable[[Send], Awaitable[None]]
PLAIN = [(b"content-type", b"text/plain; charset=utf-8"), (b"X-Request-Id", b"proxy")]
EVENTS = [(b"content-type", b"text/event-stream"), (b"x-request-id", b"mine"), (b"X-Request-Id", b"proxy")]


async def head(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def body(send: Send, data: bytes, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def ask(path: str, answer: Answer) -> httpx.Response:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["headers"].append((b"x-request-id", b"proxy"))
        await answer(send)

    layered = app
    for middleware in middlewares():
        layered = middleware.cls(layered)
    transport = httpx.ASGITransport(layered)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get(path)


def is_unavailable(reply: httpx.Response, code: str) -> None:
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, code)
    assert reply.headers["content-type"] == "application/json"
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers.get_list("x-request-id") == ["proxy"]


def test_its_errors_are_the_apis():
    expected = unavailable("so", "loading")
    assert error_document("so", "loading") == expected.body()
    assert expected.response().headers["retry-after"] == str(proxy.RETRY_AFTER_SECONDS)


async def test_answers_are_passed_on_under_the_applications_id():
    async def answer(send: Send) -> None:
        await head(send, 200, EVENTS)
        await body(send, b"data: 1\n\n", more=True)
        await body(send, b"data: [DONE]\n\n")

    reply = await ask("/v1/completions", answer)
    assert (reply.status_code, reply.content) == (200, b"data: 1\n\ndata: [DONE]\n\n")
    assert reply.headers.get_list("x-request-id") == ["mine"]


@pytest.mark.parametrize("path", ["/v1/completions", "/ready"])
async def test_no_application(path: str):
    async def answer(send: Send) -> None:
        await head(send, 404, PLAIN)
        await body(send, b"Path '/x' not found. Ping http://.../-/routes for available routes.")

    is_unavailable(await ask(path, answer), "loading")
    assert (await ask("/health", answer)).json() == {"status": "ok", "phase": "loading"}
    assert (await ask("/another/application", answer)).status_code == 404


async def test_an_applications_own_404_stays():
    async def answer(send: Send) -> None:
        await head(send, 404, PLAIN)
        await body(send, b"no such", more=True)
        await body(send, b" thing")

    reply = await ask("/v1/files", answer)
    assert (reply.status_code, reply.text) == (404, "no such thing")


async def test_an_ingress_that_is_lost_before_it_answers():
    async def answer(send: Send) -> None:
        """As Ray Serve's proxy: nothing is sent."""

    is_unavailable(await ask("/v1/completions", answer), "engine_dead")
    is_unavailable(await ask("/ready", answer), "engine_dead")


async def test_an_ingress_that_is_lost_in_a_stream():
    async def answer(send: Send) -> None:
        await head(send, 200, EVENTS)
        await body(send, b"data: 1\n\n", more=True)

    reply = await ask("/v1/completions", answer)
    first, last, done = reply.text.split("\n\n")[:3]
    assert (first, done) == ("data: 1", "data: [DONE]")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_dead"


async def test_probes_do_not_wait_for_an_ingress(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proxy, "_PROBE_SECONDS", 0.01)
    cancelled: list[bool] = []

    async def answer(send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            await head(send, 499, PLAIN)  # nobody is to see it
            raise

    is_unavailable(await ask("/ready", answer), "loading")
    healthy = await ask("/health", answer)
    await asyncio.sleep(0)
    assert (healthy.status_code, healthy.json()) == (200, {"status": "ok", "phase": "loading"})
    assert len(cancelled) == 2


async def test_a_probe_that_is_answered_in_time():
    async def answer(send: Send) -> None:
        await head(send, 200, [(b"content-type", b"application/json"), (b"x-request-id", b"proxy")])
        await asyncio.sleep(0.01)
        await body(send, b"{}")

    reply = await ask("/ready", answer)
    assert (reply.status_code, reply.content) == (200, b"{}")
