"""Embeddings, scores and labels."""

import base64
import math

import httpx
import numpy as np
import pytest
from openai import OpenAI

from serve.config import ApiSettings
from serve.engine import QueueFull
from tests.serve.api.fakes import FakeEngine, byte_text, fake_service, live
from tests.serve.api.openai.test_chat import HI, refused


def post(http: httpx.Client, path: str, **fields) -> httpx.Response:
    return http.post(f"/v1/{path}", json={"model": "sql", **fields})


@pytest.mark.parametrize("kind", ["float", "base64"])
def test_embeddings(openai: OpenAI, engine: FakeEngine, kind: str):
    engine.pooled = lambda request: (3.0, 4.0) if len(request.prompt) == 1 else (0.0, 2.0)
    reply = openai.embeddings.create(model="sql", input=["a", "bc"], encoding_format=kind)
    vectors = [item.embedding for item in reply.data]
    if kind == "base64" and isinstance(vectors[0], str):
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4").tolist() for vector in vectors]
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 1]], rtol=1e-6)
    assert [item.index for item in reply.data] == [0, 1]
    assert (reply.model, reply.usage.prompt_tokens) == ("sql", 3)
    assert {request.params.max_tokens for request in engine.requests} == {0}
    assert engine.running == set()


def test_openais_client_asks_for_base64_by_itself(openai: OpenAI):
    reply = openai.embeddings.create(model="backbone", input=[[97, 98]])
    np.testing.assert_allclose(reply.data[0].embedding, np.array([2, 1]) / math.sqrt(5), rtol=1e-6)


def test_how_they_are_pooled(http: httpx.Client, engine: FakeEngine):
    reply = post(http, "embeddings", input="abc", pooling="last", normalize=False, experts={"sql": 0.5}, model="tiny")
    assert reply.json()["data"][0]["embedding"] == [3, 1]
    (request,) = engine.requests
    assert (request.pooling, request.experts) == ("last", (("sql", 0.5),))


def test_a_name_that_routes_is_the_backbone(http: httpx.Client, engine: FakeEngine):
    reply = post(http, "embeddings", input="some sql", model=None)
    assert (reply.json()["model"], engine.requests[0].experts) == ("backbone", ())


def test_many_inputs_do_not_fill_the_queue(http: httpx.Client, engine: FakeEngine):
    reply = post(http, "embeddings", input=["x" * (number % 7 + 1) for number in range(150)], normalize=False)
    assert [item["embedding"][0] for item in reply.json()["data"]] == [number % 7 + 1 for number in range(150)]


def test_scores_are_cosines(http: httpx.Client, engine: FakeEngine):
    engine.pooled = lambda request: {"a": (1.0, 0.0), "b": (1.0, 1.0), "c": (0.0, 5.0)}[byte_text(request.prompt)]
    scores = [item["score"] for item in post(http, "score", text_1="a", text_2=["a", "b", "c"]).json()["data"]]
    np.testing.assert_allclose(scores, [1, math.sqrt(0.5), 0], atol=1e-6)
    pairs = [item["score"] for item in post(http, "score", text_1=["a", "c"], text_2=["c", "c"]).json()["data"]]
    np.testing.assert_allclose(pairs, [0, 1], atol=1e-6)
    refused(post(http, "score", text_1=["a", "b"], text_2=["a"]), "text_2")


def test_labels(http: httpx.Client, engine: FakeEngine):
    reply = post(http, "classify", input="so:", labels=[" yes", " no"]).json()
    (item,) = reply["data"]
    # Each byte has the log-probability -0.25.
    np.testing.assert_allclose(item["logprobs"], [-1, -0.75])
    np.testing.assert_allclose(item["probs"], [1 / (1 + math.exp(0.25)), 1 / (1 + math.exp(-0.25))])
    assert (item["label"], item["num_classes"], item["expert"]) == (" no", 2, "sql")
    assert reply["usage"]["prompt_tokens"] == 3
    prefix, *scored = engine.requests
    assert (byte_text(prefix.prompt), prefix.params.prompt_logprobs) == ("so:", None)
    assert {(byte_text(request.prompt), request.scored_from) for request in scored} == {("so: yes", 3), ("so: no", 3)}
    mean = post(http, "classify", input="so:", labels=[" yes", " no"], normalization="mean").json()["data"][0]
    assert mean["logprobs"] == [-0.25, -0.25]


def test_a_label_that_begins_another_has_a_token_to_score(http: httpx.Client):
    item = post(http, "classify", input="so:", labels=["a", "ab"]).json()["data"][0]
    np.testing.assert_allclose(item["logprobs"], [-0.25, -0.5])


def test_labels_of_several_prompts_are_routed(http: httpx.Client):
    reply = post(http, "classify", model="auto", input=["some sql", "poetry"], labels=["a", "b"])
    assert [item["expert"] for item in reply.json()["data"]] == ["sql", "poetry"]
    assert reply.headers["x-overtone-expert"] == "sql,poetry"


def test_labels_of_a_chat(http: httpx.Client, engine: FakeEngine):
    assert post(http, "classify", model="auto", messages=HI, labels=["a", "b"]).status_code == 200
    assert {byte_text(request.prompt) for request in engine.requests} == {"u:hia:", "u:hia:a", "u:hia:b"}
    assert post(http, "classify", messages=[{"role": "system", "content": "x"}], labels=["a", "b"]).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": ""}, "input"),
        ("embeddings", {"input": [[300]]}, "input"),
        ("embeddings", {"input": "x" * 600}, "input"),
        ("embeddings", {"input": [[1] * 600]}, "input"),
        ("embeddings", {"input": ["x"] * 2049}, "input"),
        ("embeddings", {"input": "x", "dimensions": 8}, "dimensions"),
        ("embeddings", {"input": "x", "pooling": "max"}, "pooling"),
        ("embeddings", {"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ("classify", {"labels": ["a", "b"]}, "input"),
        ("classify", {"input": "x", "labels": ["a"]}, "labels"),
        ("classify", {"input": "x", "labels": ["a", "a"]}, "labels"),
        ("classify", {"input": "", "labels": ["a", "b"]}, "input"),
        ("classify", {"input": "x" * 511, "labels": ["ab", "cd"]}, "input"),
        ("classify", {"input": ["x"] * 2000, "labels": ["ab", "cd"]}, "labels"),
        (
            "classify",
            {"messages": [{"role": "system", "content": "x"}], "labels": ["a", "b"], "model": "auto"},
            "messages",
        ),
    ],
)
def test_what_is_refused(http: httpx.Client, engine: FakeEngine, path: str, fields, param: str):
    refused(post(http, path, **fields), param)
    assert engine.requests == []


def test_time_is_limited_and_prompts_are_logged(caplog: pytest.LogCaptureFixture):
    engine = FakeEngine()
    settings = ApiSettings(request_timeout=1.0, log_prompts=True)
    with live(fake_service(engine), settings) as url, httpx.Client(base_url=url) as http:
        with caplog.at_level("INFO", logger="overtone.access"):
            assert post(http, "embeddings", input="abc").status_code == 200
            http.get("/health")  # a request is logged after its answer was sent
        assert "expert=sql" in caplog.text
        assert "prompts=['abc']" in caplog.text
        engine.wait = 30.0
        assert post(http, "classify", input="abc", labels=["a", "b"]).status_code == 504
    assert engine.running == set()


def test_refusals_of_the_engine(http: httpx.Client, engine: FakeEngine):
    engine.refusal = QueueFull("too many")
    assert post(http, "embeddings", input="x").status_code == 429
    assert post(http, "classify", input="x", labels=["a", "b"]).status_code == 429
