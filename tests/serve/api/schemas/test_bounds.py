"""Bodies that would hold the event loop: refused before they cost anything, in a message that stays short."""

import gc
import json
from typing import Any

import httpx
import pytest

from serve.api.errors import did_you_mean, model_not_found
from serve.api.schemas import BodyParser
from serve.api.schemas.parse import holds_more_values, most_values
from tests.serve.api.fakes import FakeEngine

BASE = {"model": "sql", "prompt": "hi"}
CHAT = {"model": "sql", "messages": [{"role": "user", "content": "hi"}]}
LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("document", "values"),
    [
        ("{}", 2),
        ('{"a": 1}', 2),
        ('{"a": [1, 2], "b": {"c": null}}', 6),
        ('{"a": ",,,[[[{{{"}', 2),
        (r'{"a": "\",\",[", "b": "\\", "c": [",", "\\\",["]}', 6),
        ("[[1],[2],[3]]", 7),
    ],
)
def test_values_are_counted_without_those_within_strings(document: str, values: int):
    raw = document.encode()
    assert json.loads(raw) is not None
    assert [holds_more_values(raw, most) for most in (values - 1, values)] == [True, False]


def test_the_bound_grows_with_the_bytes_allowed():
    assert most_values(64 * 2**20) == 8 * most_values(8 * 2**20) == 2_097_152
    assert most_values(100) == 65_536


@pytest.mark.parametrize(
    "body",
    [
        {**BASE, "prompt": [[1]] * 140_000},
        {**CHAT, "chat_template_kwargs": {str(number): 0 for number in range(270_000)}},
    ],
)
def test_a_body_of_too_many_values_is_413(http: httpx.Client, engine: FakeEngine, body):
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    reply = http.post(path, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (413, "body_too_large", None)
    assert "262144 JSON values" in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {**BASE, "model": LONG}, "model"),
        ("/v1/completions", {**BASE, LONG: 1}, "x" * 79 + "…"),
        ("/v1/completions", {**BASE, "model": "auto", "experts": {LONG: 1}}, "experts"),
        ("/v1/completions", {**BASE, "model": "auto", "experts": {str(n): 1 for n in range(1000)}}, "experts"),
        ("/v1/completions", {**BASE, "logit_bias": {LONG: 1}}, "logit_bias"),
        ("/v1/completions", {**BASE, "prompt": [[1]] * 20_000}, "prompt"),
        ("/v1/completions", {**BASE, "prompt": ["a"] * 20_000}, "prompt"),
        ("/v1/completions", {**BASE, "stop_token_ids": [-1] * 50_000}, "stop_token_ids.0"),
        ("/v1/completions", {**BASE, "allowed_token_ids": [-1] * 50_000}, "allowed_token_ids.0"),
        ("/v1/completions", {**BASE, "bad_words": [""] * 50_000}, "bad_words.0"),
        (
            "/v1/completions",
            {**BASE, "stream": True, "stream_options": dict.fromkeys(map(str, range(500)))},
            "stream_options",
        ),
        (
            "/v1/completions",
            {**BASE, "response_format": {"type": "text", LONG: 1}},
            "response_format." + "x" * 79 + "…",
        ),
        (
            "/v1/chat/completions",
            {**CHAT, "chat_template_kwargs": dict.fromkeys(map(str, range(65)))},
            "chat_template_kwargs",
        ),
        ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {LONG + "_token": 1}}, "chat_template_kwargs"),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": LONG, "content": "a"}]}, "messages.0.role"),
        (
            "/v1/chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": [{"type": LONG}]}]},
            "messages.0.content",
        ),
        ("/v1/chat/completions", {**CHAT, "messages": [1] * 50_000}, "messages.0"),
        (
            "/v1/chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": "a", **dict.fromkeys(map(str, range(100_000)))}]},
            "messages.0",
        ),
        ("/v1/route", {"prompt": ["a"] * 20_000}, "prompt"),
        ("/detokenize", {"tokens": [-1] * 50_000}, "tokens.0"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:30],
)
def test_what_a_client_wrote_does_not_fill_the_answer(http: httpx.Client, engine: FakeEngine, path, body, param):
    reply = http.post(path, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), reply.text[:500]
    assert len(reply.content) < 600
    assert engine.requests == []


def test_long_bodies_are_parsed_off_the_event_loop(http: httpx.Client, engine: FakeEngine, monkeypatch):
    threads = []
    parse = BodyParser._parse

    def noted(self: BodyParser, *args: Any) -> Any:
        import threading

        threads.append(threading.current_thread().name)
        return parse(self, *args)

    monkeypatch.setattr(BodyParser, "_parse", noted)
    for content in ("x", "x" * 70_000):
        http.post("/tokenize", json={"prompt": content})
    assert [name.startswith("overtone-parse") for name in threads] == [False, True]
    assert gc.isenabled()


def test_a_word_is_compared_only_where_it_is_short_and_with_some(monkeypatch: pytest.MonkeyPatch):
    compared = []
    monkeypatch.setattr(
        "serve.api.errors.difflib.get_close_matches", lambda word, known, **_: compared.append(len(known)) or []
    )
    names = tuple(f"expert-{number}" for number in range(5000))
    assert did_you_mean("x" * 65, names) == ""
    assert did_you_mean("expert", (LONG, *names)) == ""
    assert compared == [999]
    assert len(model_not_found(LONG, (LONG, *names)).message) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested more than 200 levels deep"),
        (b'{"seed": ' + b"9" * 4301 + b"}", "a number of more than 4300 digits"),
    ],
)
def test_json_that_is_valid_and_not_read_is_not_called_invalid(http: httpx.Client, content: bytes, message: str):
    reply = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, None, "invalid_value")
    assert message in error["message"]
    assert "not valid" not in error["message"]


def test_a_byte_order_mark_is_skipped(http: httpx.Client):
    content = b"\xef\xbb\xbf" + json.dumps(BASE).encode()
    headers = {"content-type": "application/json"}
    assert http.post("/v1/completions", content=content, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "!", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "schema": {}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        ({"response_format": {"type": "text", "foo": 1}}, "response_format.foo"),
        ({"response_format": {"type": "no"}}, "response_format"),
        ({"structured_outputs": {"json": 1}}, "structured_outputs.json"),
        ({"structured_outputs": {"json_schema": {}}}, "structured_outputs.json_schema"),
        ({"stop": [1]}, "stop"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"logit_bias": {"5": "a"}}, "logit_bias.5"),
        ({"experts": {"sql": "a"}, "model": "auto"}, "experts.sql"),
    ],
)
def test_the_param_is_a_path_of_the_body(http: httpx.Client, fields, param):
    body = {**BASE, **fields}
    error = http.post("/v1/completions", json=body).json()["error"]
    assert error["param"] == param
    at = body
    *parents, _ = param.split(".")
    for part in parents:
        at = at[part]
    assert isinstance(at, dict)


def test_messages_of_a_chat_are_named_by_their_place(http: httpx.Client):
    body = {**CHAT, "messages": [*CHAT["messages"], {"role": "user", "content": "a", "type": "content"}]}
    assert http.post("/v1/chat/completions", json=body).json()["error"]["param"] == "messages.1.type"


def test_the_key_of_a_bias_is_named(http: httpx.Client):
    error = http.post("/v1/completions", json={**BASE, "logit_bias": {"5": 1, "tok": 1}}).json()["error"]
    assert "the key 'tok' is not a token id" in error["message"]
