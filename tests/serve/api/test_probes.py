import json
import re
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.api.generate.service import Phase, Service
from serve.metrics import Metrics
from tests.serve.api.fakes import FakeEngine, fake_service, live

BODY = {"model": "sql", "prompt": "hi"}


def test_a_ready_server(http: httpx.Client):
    assert http.get("/health").json() == {"status": "ok", "phase": "ready"}
    assert http.get("/ready").json() == {"status": "ready"}
    assert http.get("/version").json() == {"version": "1.2.3"}


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics", "/version", "/v1/models", "/v1/models/sql"])
def test_head_is_get_without_the_body(http: httpx.Client, path: str):
    asked, got = http.head(path), http.get(path)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-type"] == got.headers["content-type"]


def test_loading_then_ready_then_draining(service: Service):
    runtime = service.runtime
    service = Service(Metrics())
    with live(service) as url, httpx.Client(base_url=url) as client:
        for _ in range(2):
            assert client.get("/health").status_code == 200
            for reply in (client.get("/ready"), client.post("/v1/completions", json=BODY), client.get("/v1/models")):
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "loading")
                assert reply.headers["retry-after"] == "1"
        service.attach(runtime)
        assert client.get("/ready").status_code == 200
        assert client.post("/v1/completions", json=BODY).status_code == 200
        service.drain()
        assert client.get("/health").json()["phase"] == "draining"
        for path in ("/v1/completions", "/v1/route"):
            assert client.post(path, json=BODY).json()["error"]["code"] == "draining"
        assert client.get("/ready").status_code == 503


def test_a_model_that_arrives_while_draining_does_not_reopen(service: Service):
    fresh = Service(Metrics())
    fresh.drain()
    fresh.attach(service.runtime)
    assert fresh.phase is Phase.DRAINING


def test_metrics_count_what_happened(service: Service):
    with live(service) as url, httpx.Client(base_url=url) as client:
        client.post("/v1/completions", json={**BODY, "max_tokens": 3})
        client.post("/v1/completions", json={"model": "auto", "prompt": "sql"})
        client.post("/v1/completions", json={"model": "auto", "prompt": "hm"})
        client.get("/nope/1")
        client.get("/nope/2")
        reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }
    assert samples["overtone_http_requests_total", "/v1/completions", "200", "POST"] == 3
    assert samples["overtone_http_requests_total", "404", "GET", "unmatched"] == 2
    assert samples["overtone_generation_tokens_total",] == 3 + 6 + 6
    assert samples["overtone_time_to_first_token_seconds_count",] == 3
    assert samples["overtone_inter_token_latency_seconds_count",] == 2 + 5 + 5
    assert samples["overtone_request_success_total", "length"] == 1
    assert samples["overtone_request_success_total", "stop"] == 2
    assert samples["overtone_router_decisions_total", "sql"] == 1
    assert samples["overtone_router_fallbacks_total",] == 1
    assert samples["overtone_router_seconds_count",] == 2
    assert samples["overtone_build_info", "1.2.3"] == 1


def test_refusals_are_counted_by_their_reason(service: Service):
    def post(client: httpx.Client, content: str = "", **fields) -> None:
        reply = client.post(
            "/v1/completions",
            content=content or json.dumps({**BODY, **fields}),
            headers={"content-type": "application/json"},
        )
        assert reply.status_code >= 400

    runtime, service = service.runtime, Service(Metrics())
    with live(service) as url, httpx.Client(base_url=url) as client:
        post(client)
        service.attach(runtime)
        post(client, content="{")
        post(client, n=0)
        post(client, model="nope")
        post(client, prompt="x" * 100_000)
        post(client, max_tokens=100_000)
        runtime.engine.dead = "out of memory"
        post(client)
        service.drain()
        post(client)
        found = dict(
            re.findall(r'overtone_admission_rejections_total\{reason="(\w+)"\} (\d)', client.get("/metrics").text)
        )
    assert found == {
        "Draining": "1",
        "EngineDead": "1",
        "InvalidRequest": "2",
        "Loading": "1",
        "PromptTooLong": "2",
        "QueueFull": "0",
        "UnknownExpert": "1",
    }


def test_experts_are_under_way_from_admission_to_the_end():
    engine = FakeEngine()
    engine.delay = 1000
    service = fake_service(engine)
    body = {"model": "auto", "prompt": "hi", "experts": {"sql": 1.0, "poetry": 0.5}, "n": 2, "stream": True}
    with live(service) as url, httpx.Client(base_url=url) as client:
        with client.stream("POST", "/v1/completions", json=body):
            assert service.metrics.http.experts_under_way == {"sql", "poetry"}
        deadline = time.monotonic() + 10
        while service.metrics.http.experts_under_way:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_openmetrics_for_those_who_ask(http: httpx.Client):
    reply = http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.text.endswith("# EOF\n")


def test_two_servers_count_apart():
    one, two = fake_service(None), fake_service(None)
    one.metrics.http.finished("stop")
    assert b'overtone_request_success_total{finished_reason="stop"} 1.0' in one.metrics.render()[0]
    assert b'overtone_request_success_total{finished_reason="stop"} 0.0' in two.metrics.render()[0]
