"""Connections that misbehave, over raw sockets: what is not HTTP, what is slow, what is too much."""

import asyncio
import contextlib
import json
import logging
import resource
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import h11
import httpx
import pytest
from fastapi import FastAPI
from uvicorn.server import ServerState

from serve.api.security import open_files
from serve.api.security.connection import HttpConfig, HttpConnection
from serve.api.security.open_files import SPARE_CONNECTIONS, AcceptErrors, connections_that_fit
from serve.config import ApiSettings, ConnectionSettings
from tests.serve.api.fakes import FakeEngine, fake_service, live
from tests.serve.api.generate.test_disconnect import wait_for

BODY = json.dumps({"model": "sql", "prompt": "hi"})
POST = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = f"{POST}Content-Length: {len(BODY)}\r\n\r\n{BODY}"
GET = "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    """A server that allows little time and few connections."""
    api = ApiSettings(max_body_bytes=10_000, max_header_bytes=4096, body_timeout=0.3)
    bounds = ConnectionSettings(4, header_timeout=0.3, write_timeout=0.3, keep_alive_timeout=0.3)
    with live(fake_service(engine), api, bounds) as url:
        yield url


@contextlib.contextmanager
def connected(url: str, first: str = "") -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(first.encode("latin-1"))
        yield connection


def everything(connection: socket.socket) -> str:
    """What comes until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(2**16):
            parts.append(part)
    return b"".join(parts).decode()


def one(connection: socket.socket) -> str:
    """What comes first."""
    return connection.recv(2**16).decode()


def refused(reply: str, status: int, code: str) -> str:
    """The message of an error in the API's form."""
    head, _, body = reply.partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} "), reply
    assert "content-type: application/json" in head.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error["message"]


@pytest.mark.parametrize(
    "sent",
    [
        "garbage\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        "GET / HTTP/3\r\n\r\n",
        "GET /\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        f"{POST}Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        f"{POST}Content-Length: -1\r\n\r\n",
        f"{POST}Transfer-Encoding: chunked\r\n\r\nno size\r\n",
    ],
)
def test_what_is_not_http_is_refused_in_the_promised_form(url: str, sent: str):
    with connected(url, sent) as connection:
        assert "not valid HTTP" in refused(everything(connection), 400, "invalid_http")


def test_an_unknown_method_is_answered_as_any_other(url: str):
    with connected(url, "FOO /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as connection:
        refused(everything(connection), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "headers",
    [
        "X: " + "a" * 5000,  # in one piece
        "X: " + "a" * 2**20,  # more than is read at once
        "\r\n".join(f"a{number}: b" for number in range(300)),
        "\r\n".join("a:" for _ in range(2**15)),
    ],
)
def test_headers_are_bounded_in_size_and_number(url: str, headers: str):
    with connected(url) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{headers}\r\nConnection: close\r\n\r\n".encode())
        reply = everything(connection)
        if reply:  # the reply can be lost if much of the request is still on its way
            assert json.loads(reply.partition("\r\n\r\n")[2])["error"]["code"] in ("headers_too_large", "invalid_http")
            assert reply.startswith("HTTP/1.1 431 ")
        assert reply or len(headers) > 2**15


def test_a_head_without_an_end_is_cut_off(url: str):
    with connected(url, "GET /v1/models HTTP/1.1\r\nX-") as connection:
        assert "--header-timeout" in refused(everything(connection), 408, "request_timeout")


@pytest.mark.parametrize("first", ["", GET])
def test_an_idle_connection_is_closed(url: str, first: str):
    with connected(url, first) as connection:
        assert everything(connection).count("HTTP/1.1") == bool(first)


@pytest.mark.parametrize(
    "rest",
    ["Content-Length: 100\r\n\r\n{", "Content-Length: 100\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"],
)
def test_a_body_without_an_end_is_408_in_the_log_too(url: str, caplog: pytest.LogCaptureFixture, rest: str):
    with caplog.at_level("INFO"), connected(url, f"{POST}X-Request-Id: slow\r\n{rest}") as connection:
        assert "--body-timeout" in refused(everything(connection), 408, "request_timeout")
    wait_for(lambda: "slow POST /v1/completions 408" in caplog.text)
    assert "Traceback" not in caplog.text


def test_a_body_that_nobody_asked_for_does_not_keep_the_connection(url: str, monkeypatch: pytest.MonkeyPatch):
    """The reply is complete, and the client continues to send."""
    monkeypatch.setattr("serve.api.security.connection._BODY_GRACE", 0.0)
    with connected(url, "POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n") as connection:
        assert one(connection).startswith("HTTP/1.1 404 ")
        wait_for(lambda: closed_after_a_byte(connection))


def closed_after_a_byte(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
        return connection.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except (BrokenPipeError, ConnectionResetError):
        return True


def test_a_body_that_is_announced_as_too_long_is_refused_before_it_is_sent(url: str):
    with connected(url, f"{POST}Content-Length: 10001\r\nExpect: 100-continue\r\n\r\n") as connection:
        reply = everything(connection)
    refused(reply, 413, "body_too_large")
    assert "100 Continue" not in reply
    assert "connection: close" in reply.lower()


def test_a_body_that_fits_is_asked_for(url: str):
    with connected(url, f"{POST}Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\n\r\n") as connection:
        assert one(connection).startswith("HTTP/1.1 100 ")
        connection.sendall((BODY + GET).encode())  # the connection can be used again
        assert everything(connection).count("HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("length", ["1" * 30, "0" * 30 + "5"])
def test_lengths_of_many_digits(url: str, length: str):
    with connected(url, f"{POST}Content-Length: {length}\r\nConnection: close\r\n\r\n") as connection:
        assert everything(connection).startswith(("HTTP/1.1 413 ", "HTTP/1.1 400 "))


def test_http_1_0_streams_have_no_chunks(url: str):
    body = json.dumps({"model": "sql", "prompt": "hi", "stream": True})
    head = f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with connected(url, head + body) as connection:
        reply = everything(connection)
    head, _, events = reply.partition("\r\n\r\n")
    assert "transfer-encoding" not in head.lower()
    assert events.startswith("data: {")
    assert events.endswith("data: [DONE]\n\n")


def test_pipelined_requests_are_answered_in_turn(url: str):
    with connected(url, GET + WHOLE + GET) as connection:
        reply = everything(connection)
    assert reply.count("HTTP/1.1 200 ") == 3


def test_more_than_one_head_of_requests_sent_ahead_is_cut_off(url: str, engine: FakeEngine):
    engine.delay = 1000
    with connected(url, WHOLE + GET * 1000) as connection:
        assert everything(connection) == ""
    wait_for(lambda: not engine.running)
    engine.reset()


def test_over_the_limit_there_is_503_but_for_probes(url: str, engine: FakeEngine):
    engine.reset()
    engine.delay = 1000
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connected(url, WHOLE))
        wait_for(lambda: len(engine.running) == 4)
        with connected(url, GET) as fifth:
            reply = everything(fifth)
            refused(reply, 503, "too_many_connections")
            assert "retry-after: 1" in reply.lower()
        with connected(url, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n") as probe:
            reply = everything(probe)
            assert reply.startswith("HTTP/1.1 200 ")
            assert "connection: close" in reply.lower()
        for _ in range(SPARE_CONNECTIONS):
            stack.enter_context(connected(url, "GET"))
        with connected(url) as last:
            refused(everything(last), 503, "too_many_connections")
    wait_for(lambda: not engine.running)
    engine.reset()


class Transport:
    """As much of a transport as an idle connection needs."""

    def __init__(self) -> None:
        self.closed = False
        self.unwritten = [0]

    def get_write_buffer_size(self) -> int:
        """The sizes in turn, and the last one for ever."""
        return self.unwritten.pop(0) if len(self.unwritten) > 1 else self.unwritten[0]

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


def connections(bounds: ConnectionSettings) -> tuple[HttpConfig, Callable[[], HttpConnection]]:
    """The state that connections share, and what makes one."""
    config, state = HttpConfig(FastAPI(), ApiSettings(), bounds), ServerState()
    config.load()

    def connect() -> HttpConnection:
        connection = HttpConnection(config, state, {})
        connection.connection_made(Transport())
        return connection

    return config, connect


@pytest.mark.parametrize(("sizes", "cut"), [([9, 9], True), ([9, 5, 3, 3], True), ([9, 0], False)])
async def test_a_client_that_reads_nothing_is_cut_off(sizes: list[int], cut: bool):
    _, connect = connections(ConnectionSettings(write_timeout=0.001))
    connection = connect()
    connection.transport.unwritten = sizes
    connection.pause_writing()
    if not cut:
        connection.resume_writing()
    while connection.transport.closed != cut:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert connection.transport.closed == cut
    assert len(connection.transport.unwritten) == 1  # all looked at
    connection.connection_lost(None)


async def test_an_idle_connection_makes_room_for_a_new_one(monkeypatch: pytest.MonkeyPatch):
    config, connect = connections(ConnectionSettings(max_connections=2))
    first, second = connect(), connect()
    third = connect()  # the others are new, and may be about to send
    assert not first.transport.closed
    assert third.app_state
    monkeypatch.setattr("serve.api.security.connection._IDLE_GRACE", 0.0)
    fourth = connect()
    assert (first.transport.closed, second.transport.closed) == (True, False)
    assert fourth.app_state == {}
    assert first.conn.our_state is h11.CLOSED
    for connection in (first, second, third, fourth):
        connection.connection_lost(None)
    assert config.idle == {}


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "fitting", "raised"),
    [
        (1024, 4096, 500, 500, 1024),
        (1024, 65536, 4096, 4096, 4096 + 52),
        (1024, 2048, 4096, 2048 - 52, 2048),
        (64, 64, 4096, 12, 64),
        (16, 16, 4096, 1, 16),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, 4096, resource.RLIM_INFINITY),
    ],
)
def test_connections_fit_into_the_limit_on_open_files(monkeypatch, caplog, soft, hard, wanted, fitting, raised):
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    monkeypatch.setattr(open_files, "_open_files", lambda: 20)
    assert connections_that_fit(wanted) == fitting
    assert limits[-1][0] == raised
    assert ("--max-connections" in caplog.text) == (fitting < wanted)


class Loop:
    """A clock, and what was left to asyncio."""

    def __init__(self) -> None:
        self.now = 100.0
        self.contexts = []

    def time(self) -> float:
        return self.now

    def default_exception_handler(self, context) -> None:
        self.contexts.append(context)


def test_failed_accepts_are_logged_every_ten_seconds(caplog: pytest.LogCaptureFixture):
    handler, loop = AcceptErrors(), Loop()
    failed = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    with caplog.at_level(logging.ERROR):
        for _ in range(2000):
            handler(loop, failed)
        loop.now += 10
        handler(loop, failed)
        handler(loop, {"message": "another"})
    assert len(caplog.records) == 2
    assert "Too many open files" in caplog.text
    assert loop.contexts == [{"message": "another"}]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/route", "/tokenize"])
def test_a_missing_body_is_a_bad_request_whatever_its_type(url: str, path: str):
    with httpx.Client(base_url=url) as http:
        reply = http.post(path)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 415, "unsupported_media_type"),
        ({"content-type": "text/plain"}, 415, "unsupported_media_type"),
        ({"content-type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415, "unsupported_encoding"),
        ({"content-type": "application/json"}, 200, None),
        ({"content-type": "Application/JSON; charset=utf-8", "content-encoding": "identity"}, 200, None),
        ({"content-type": "application/vnd.api+json"}, 200, None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/route", "/tokenize"])
def test_a_body_must_be_sent_as_json(url: str, path: str, headers: dict[str, str], status: int, code: str | None):
    body = BODY if path == "/v1/completions" else json.dumps({"prompt": "hi"})
    with httpx.Client(base_url=url) as http:
        reply = http.post(path, content=body, headers=headers)
    assert reply.status_code == status, reply.text
    if code is not None:
        error = reply.json()["error"]
        assert error["code"] == code
        named = headers.get("content-encoding", headers.get("content-type", "missing"))
        assert named in error["message"]
