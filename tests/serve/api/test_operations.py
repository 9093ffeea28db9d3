"""What an operator relies on: limits, logs, the watchdog, CORS."""

import json
import logging
import time

import httpx
import pytest

from serve.api.context import RequestContext, _log_access
from serve.api.generate.service import Service
from serve.api.logs import JsonFormatter, TextFormatter, configure_logging
from serve.config import ApiSettings
from serve.metrics import Metrics
from tests.serve.api.fakes import FakeEngine, fake_service, live

BODY = {"model": "sql", "prompt": "hi"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_ended(stream: bool):
    engine = FakeEngine()
    engine.delay = 1000
    settings = ApiSettings(request_timeout=0.05)
    with live(fake_service(engine), settings) as url, httpx.Client(base_url=url, timeout=20) as client:
        reply = client.post("/v1/completions", json={**BODY, "stream": stream, "n": 2})
        deadline = time.monotonic() + 10
        while engine.running and time.monotonic() < deadline:
            time.sleep(0.005)
    assert engine.running == set()
    if stream:
        assert '"code":"timeout"' in reply.text
    else:
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")


def test_a_hanging_step_makes_the_server_unhealthy_until_it_ends():
    engine = FakeEngine()
    service = Service(Metrics(), fake_service(engine).runtime, engine_timeout=5)
    with live(service) as url, httpx.Client(base_url=url) as client:
        engine.hanging = 4.9
        assert client.get("/health").status_code == 200
        engine.hanging = 7.0
        for reply in (client.get("/health"), client.get("/ready"), client.post("/v1/completions", json=BODY)):
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_dead")
            assert "running for 7 seconds, longer than the --engine-timeout of 5" in reply.json()["error"]["message"]
        engine.hanging = 0.0
        assert client.get("/health").status_code == client.post("/v1/completions", json=BODY).status_code == 200


def test_no_limit_on_steps_unless_asked(http: httpx.Client, engine: FakeEngine):
    engine.hanging = 1e9
    assert http.get("/health").status_code == 200


def test_cors_is_off_by_default(http: httpx.Client):
    origin = {"Origin": "https://a.example"}
    assert "access-control-allow-origin" not in http.get("/health", headers=origin).headers


def test_cors_for_the_origins_that_are_allowed():
    settings = ApiSettings(api_keys=("k",), allowed_origins=("https://a.example",))
    asked = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"  # as OpenAI's client in browsers
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    with live(fake_service(FakeEngine()), settings) as url, httpx.Client(base_url=url) as client:
        ours = client.options("/v1/completions", headers={"Origin": "https://a.example", **asks})
        assert (ours.status_code, ours.headers["access-control-allow-origin"]) == (200, "https://a.example")
        assert set(asked.split(",")) <= set(ours.headers["access-control-allow-headers"].split(","))
        assert "access-control-allow-credentials" not in ours.headers
        others = client.options("/v1/completions", headers={"Origin": "https://b.example", **asks})
        assert "access-control-allow-origin" not in others.headers
        headers = {"Origin": "https://a.example", "Authorization": "Bearer k"}
        reply = client.post("/v1/completions", json=BODY, headers=headers)
        assert reply.headers["access-control-allow-origin"] == "https://a.example"
        assert "x-overtone-expert" in reply.headers["access-control-expose-headers"]


def log_of(caplog: pytest.LogCaptureFixture, settings: ApiSettings, **fields) -> logging.LogRecord:
    with (
        caplog.at_level("INFO", logger="overtone.access"),
        live(fake_service(FakeEngine()), settings) as url,
        httpx.Client(base_url=url) as client,
    ):
        client.post("/v1/completions", json={**BODY, **fields}, headers={"X-Request-Id": "r1"})
        client.get("/health")  # answered after the line above was written
    return next(record for record in caplog.records if "/v1/completions" in record.getMessage())


def test_the_access_log_as_json(caplog: pytest.LogCaptureFixture):
    record = log_of(caplog, ApiSettings(), prompt="a secret", user="ann\n")
    document = json.loads(JsonFormatter().format(record))
    assert set(document) >= {"time", "level", "logger", "message", "seconds"}
    expected = {"request_id": "r1", "method": "POST", "path": "/v1/completions", "status": 200, "user": "ann\n"}
    assert {name: document[name] for name in expected} == expected
    assert document["expert"] == "sql"
    assert "secret" not in JsonFormatter().format(record)


def test_prompts_are_logged_where_asked_for(caplog: pytest.LogCaptureFixture):
    record = log_of(caplog, ApiSettings(log_prompts=True), prompt=["one é", "two"], n=2)
    assert json.loads(JsonFormatter().format(record))["prompts"] == ["one é", "two"]
    assert "prompts=['one \\xe9', 'two']" in record.getMessage()


def test_an_exception_in_json():
    try:
        raise KeyError("x")
    except KeyError as error:
        record = logging.LogRecord(
            "overtone", logging.ERROR, "", 0, "failed", (), (KeyError, error, error.__traceback__)
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "KeyError: 'x'" in json.loads(line)["exception"]


def record_of(message: str, **extra) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "overtone", "levelname": "INFO", "msg": message, **extra})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x85", "\u2028", "\u2029", "\x0b", "\x1b[2J"])
def test_a_record_is_one_line_whatever_it_holds(end: str):
    assert len(TextFormatter().format(record_of(f"expert a{end}b")).splitlines()) == 1
    line = JsonFormatter().format(record_of("m", fields={"user": f"a{end}b"}))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert json.loads(line)["user"] == f"a{end}b"


def test_names_of_experts_are_escaped_in_the_access_log(caplog: pytest.LogCaptureFixture):
    scope = {"method": "POST", "path": "/"}
    with caplog.at_level("INFO", logger="overtone.access"):
        _log_access(logging.INFO, RequestContext("r", expert="line1\nline2"), scope, 200, 0.1)
    assert "expert=line1\\nline2" in caplog.messages[0]


def test_successful_probes_are_not_in_the_log(caplog: pytest.LogCaptureFixture):
    engine = FakeEngine()
    with (
        caplog.at_level("INFO", logger="overtone.access"),
        live(fake_service(engine)) as url,
        httpx.Client(base_url=url) as client,
    ):
        for path in ("/health", "/ready", "/metrics", "/version"):
            client.get(path)
        engine.dead = "it"
        client.get("/health")
        client.get("/v1/models")  # answered after the line above was written
    found = [message.split()[2:4] for message in caplog.messages]
    assert found[:2] == [["/version", "200"], ["/health", "503"]]


@pytest.mark.parametrize("style", ["text", "json"])
def test_asyncios_records_go_the_same_way(capsys: pytest.CaptureFixture[str], style: str):
    loggers = [logging.getLogger(name) for name in ("overtone", "uvicorn", "asyncio")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    try:
        configure_logging("info", style)
        logging.getLogger("asyncio").error("one\ntwo")
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
    (line,) = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["message"] if style == "json" else line).endswith(
        "one\ntwo" if style == "json" else r"one\u000atwo"
    )
