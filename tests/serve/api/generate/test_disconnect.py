"""A client that goes away frees what its request holds, streaming or not."""

import contextlib
import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.serve.api.fakes import FakeEngine, says

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@contextlib.contextmanager
def sent(url: str, **fields):
    """A connection on which a completion was asked for."""
    body = json.dumps({"model": "sql", "prompt": "hi", "max_tokens": 400, **fields})
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        yield connection


@pytest.mark.parametrize("fields", [{"stream": False}, {"stream": True}, {"stream": True, "n": 3}, {"n": 3}])
def test_leaving_aborts(url: str, engine: FakeEngine, fields):
    engine.model, engine.delay = says("x" * 400), 0.01
    with sent(url, **fields) as connection:
        wait_for(lambda: len(engine.running) == fields.get("n", 1))
        if fields.get("stream"):
            assert connection.recv(10)
    wait_for(lambda: not engine.running)
    assert sorted(engine.aborted) == sorted(request.request_id for request in engine.requests)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_the_first_token_aborts(url: str, engine: FakeEngine, stream: bool):
    engine.delay = 1000
    with sent(url, stream=stream):
        wait_for(lambda: engine.running)
    wait_for(lambda: not engine.running)


def test_the_log_and_the_counters_say_that_the_client_left(url: str, engine: FakeEngine, http, caplog):
    engine.delay = 1000
    with caplog.at_level("INFO", logger="overtone.access"):
        with sent(url, request_id="gone"):
            wait_for(lambda: engine.running)
        wait_for(lambda: "gone POST /v1/completions 499" in caplog.text)
    assert (
        'overtone_http_requests_total{handler="/v1/completions",method="POST",status="499"}'
        in http.get("/metrics").text
    )


def test_others_go_on(url: str, engine: FakeEngine, http):
    engine.model, engine.delay = says("x" * 30), 0.01
    with sent(url, stream=True):
        wait_for(lambda: engine.running)
    reply = http.post("/v1/completions", json={"model": "sql", "prompt": "hi", "max_tokens": 30})
    assert reply.json()["choices"][0]["text"] == "x" * 30


@pytest.mark.parametrize(
    ("rest", "answers"),
    [
        ("Content-Length: 100\r\n\r\n{", ""),
        ("Content-Length: 100\r\nExpect: 100-continue\r\n\r\n", "HTTP/1.1 100 "),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\n{", ""),
        ("Transfer-Encoding: chunked\r\n\r\nno size\r\n", "HTTP/1.1 400 "),
    ],
)
def test_leaving_during_the_body_is_499_without_a_traceback(url: str, http, caplog, rest: str, answers: str):
    counted = 'overtone_http_requests_total{handler="/v1/completions",method="POST",status="500"}'
    before = counted in http.get("/metrics").text
    address = urlsplit(url)
    with caplog.at_level("INFO"):
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(f"{HEAD}X-Request-Id: gone\r\n{rest}".encode())
            if answers:
                assert connection.recv(100).decode().startswith(answers)
        wait_for(lambda: "gone POST /v1/completions 499" in caplog.text)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert (counted in http.get("/metrics").text) == before
