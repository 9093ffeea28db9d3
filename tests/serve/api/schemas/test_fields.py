"""Every field is honoured or refused by name; none is accepted and ignored."""

import json

import httpx
import pytest
from tokenizers import processors

from serve.api.schemas import CompletionRequest
from tests.serve.api.fakes import MAX_MODEL_LEN, FakeEngine, fake_service, live

FOREIGN = {
    "suffix": "end",
    "use_beam_search": True,
    "length_penalty": 0.5,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "truncate_prompt_tokens": 3,
    "truncation_side": "left",
    "prompt_logprobs": 1,
    "logprob_token_ids": [1],
    "prompt_embeds": "AAAA",
    "guided_json": {"type": "object"},
    "guided_regex": "a",
    "guided_choice": ["a"],
    "guided_grammar": "a",
    "kv_transfer_params": {"a": 1},
    "session_id": "s",
    "return_tokens_as_token_ids": True,
    "return_token_ids": True,
    "cache_salt": "s",
    "vllm_xargs": {"a": 1},
    "repetition_detection": {"n": 3},
    "stream_interval": 4,
}
"""vLLM's and OpenAI's fields that are not implemented, each with a value that would matter."""

ENGINE = {
    "max_tokens": 9,
    "min_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.25,
    "presence_penalty": 1.5,
    "frequency_penalty": -1.5,
    "repetition_penalty": 1.25,
    "seed": 11,
    "ignore_eos": True,
    "logprobs": 2,
}
"""Fields that go to the engine unchanged."""

ELSEWHERE = {
    # By file: these have separate tests.
    *("model", "prompt", "experts", "n", "echo", "stream", "stream_options", "user", "request_id"),  # test_completions
    *("stop", "include_stop_str_in_output", "best_of"),  # test_choice, test_completions
    *("response_format", "structured_outputs"),  # test_structure
    "router_top_k",  # test_route
    *("logit_bias", "stop_token_ids", "priority", "allowed_token_ids", "bad_words", "add_special_tokens"),  # below
}


def post(http: httpx.Client, **fields):
    return http.post("/v1/completions", json={"model": "sql", "prompt": "hi", **fields})


def refused(reply: httpx.Response, param: str | None) -> str:
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), reply.text
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


def test_every_field_of_the_schema_is_tested():
    assert set(CompletionRequest.model_fields) == set(ENGINE) | ELSEWHERE


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_implemented_is_refused_by_name(http: httpx.Client, engine: FakeEngine, name: str):
    assert name in refused(post(http, **{name: FOREIGN[name]}), name)
    assert engine.requests == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, None) for name in FOREIGN],
        ("use_beam_search", False),
        ("length_penalty", 1),
        ("skip_special_tokens", True),
        ("suffix", ""),
    ],
)
def test_values_that_ask_for_nothing_are_honoured_by_doing_nothing(http: httpx.Client, name: str, value):
    assert post(http, **{name: value}).status_code == 200


def test_false_is_not_nothing_where_nothing_is_a_number(http: httpx.Client):
    refused(post(http, stream_interval=True), "stream_interval")


@pytest.mark.parametrize("name", ENGINE)
def test_sampling_fields_reach_the_engine(http: httpx.Client, engine: FakeEngine, name: str):
    assert post(http, **{name: ENGINE[name]}).status_code == 200
    default = post(http)
    assert default.status_code == 200
    assert getattr(engine.requests[0].params, name) == ENGINE[name]
    assert getattr(engine.requests[1].params, name) != ENGINE[name]


def test_the_other_fields_of_the_engine(http: httpx.Client, engine: FakeEngine):
    assert post(http, logit_bias={"42": -100, "7": 1.5}, stop_token_ids=[5, 6], priority=3).status_code == 200
    (request,) = engine.requests
    assert dict(request.params.logit_bias) == {42: -100.0, 7: 1.5}
    assert request.params.stop_token_ids == (5, 6)
    assert request.priority == 3


def test_allowed_tokens_and_bad_words_reach_the_engine(http: httpx.Client, engine: FakeEngine):
    assert post(http, allowed_token_ids=[5, 6, 5], bad_words=["ab", " c"]).status_code == 200
    params = engine.requests[0].params
    assert params.allowed_token_ids == (5, 6)
    assert set(params.bad_words) == {tuple(b"ab"), tuple(b" ab"), tuple(b" c")}


@pytest.mark.parametrize(("special", "expected"), [({}, b"\x00hi"), ({"add_special_tokens": False}, b"hi")])
def test_special_tokens_are_added_unless_refused(special, expected):
    engine = FakeEngine()
    service = fake_service(engine)
    service.runtime.codec.tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    with live(service) as url, httpx.Client(base_url=url) as client:
        assert post(client, **special).status_code == 200
    assert engine.requests[0].prompt == tuple(expected)


def test_top_k_of_minus_one_keeps_all_tokens_as_in_vllm(http: httpx.Client, engine: FakeEngine):
    post(http, top_k=-1)
    assert engine.requests[0].params.top_k == 0


@pytest.mark.parametrize("name", sorted(set(CompletionRequest.model_fields) - {"model", "prompt"}))
def test_null_means_not_set(http: httpx.Client, name: str):
    assert post(http, **{name: None}).status_code == 200


@pytest.mark.parametrize(
    ("name", "meant"), [("max_token", "max_tokens"), ("temprature", "temperature"), ("expert", "experts")]
)
def test_an_unknown_field_is_refused_with_what_was_meant(http: httpx.Client, name: str, meant: str):
    assert f"did you mean '{meant}'?" in refused(post(http, **{name: 1}), name)


def test_an_unknown_field_like_no_other(http: httpx.Client):
    assert refused(post(http, zzz=None), "zzz") == "unknown field 'zzz'"
    assert len(refused(post(http, **{"x" * 5000: 1}), "x" * 79 + "…")) < 200


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("model", 3, "model"),
        ("prompt", 3, "prompt"),
        ("prompt", [], "prompt"),
        ("prompt", [[]], "prompt"),
        ("prompt", [True], "prompt"),
        ("prompt", ["a", 1], "prompt"),
        ("prompt", [[1], "a"], "prompt"),
        ("prompt", [-1], "prompt"),
        ("prompt", [1.5], "prompt"),
        ("prompt", [257], "prompt"),
        ("prompt", [10**30], "prompt"),
        ("prompt", "", "prompt"),
        ("prompt", {"a": 1}, "prompt"),
        ("experts", {}, "experts"),
        ("experts", [], "experts"),
        ("experts", {"sql": 0}, "experts.sql"),
        ("experts", {"sql": "1"}, "experts.sql"),
        ("experts", {"sql": 1}, "experts"),  # the model sql decides alone
        ("n", 0, "n"),
        ("n", 1.5, "n"),
        ("n", True, "n"),
        ("n", 129, "n"),
        ("best_of", 0, "best_of"),
        ("best_of", 129, "best_of"),
        ("max_tokens", -2, "max_tokens"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", "5", "max_tokens"),
        ("min_tokens", 17, "min_tokens"),
        ("min_tokens", -1, "min_tokens"),
        ("temperature", -0.1, "temperature"),
        ("temperature", 2.1, "temperature"),
        ("temperature", "1", "temperature"),
        ("temperature", 1e400, "temperature"),
        ("top_p", 0, "top_p"),
        ("top_p", 1.1, "top_p"),
        ("top_k", -2, "top_k"),
        ("top_k", 1.5, "top_k"),
        ("min_p", 1.1, "min_p"),
        ("presence_penalty", 2.1, "presence_penalty"),
        ("frequency_penalty", -2.1, "frequency_penalty"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("logit_bias", {"a": 1}, "logit_bias"),
        *[("logit_bias", {key: 1}, "logit_bias") for key in ("", " 5", "+5", "-5", "1_0", "٣", "9" * 5000)],
        ("logit_bias", {"1": 101}, "logit_bias.1"),
        ("logit_bias", {"257": 1}, "logit_bias"),
        ("logit_bias", [1], "logit_bias"),
        ("allowed_token_ids", [], "allowed_token_ids"),
        ("allowed_token_ids", [257], "allowed_token_ids"),
        ("bad_words", [""], "bad_words.0"),
        ("bad_words", "a", "bad_words"),
        ("seed", 2**63, "seed"),
        ("seed", 1.5, "seed"),
        ("stop", ["a"] * 65, "stop"),
        ("stop", "", "stop"),
        ("stop", ["a", ""], "stop"),
        ("stop", 1, "stop"),
        ("stop", "a" * 257, "stop"),
        ("stop_token_ids", [-1], "stop_token_ids.0"),
        ("stop_token_ids", [257], "stop_token_ids"),
        ("stop_token_ids", 5, "stop_token_ids"),
        ("include_stop_str_in_output", 1, "include_stop_str_in_output"),
        ("ignore_eos", "no", "ignore_eos"),
        ("logprobs", True, "logprobs"),
        ("logprobs", 21, "logprobs"),
        ("echo", 1, "echo"),
        ("stream", "yes", "stream"),
        ("stream_options", {"include_usage": True}, "stream_options"),  # without stream
        ("stream_options", {"include": True}, "stream_options.include"),
        ("stream_options", True, "stream_options"),
        ("user", 1, "user"),
        ("priority", 0.5, "priority"),
        ("request_id", "", "request_id"),
        ("request_id", "a b", "request_id"),
        ("request_id", "x" * 129, "request_id"),
    ],
)
def test_wrong_types_and_ranges_name_the_field(http: httpx.Client, engine: FakeEngine, field, value, param):
    content = json.dumps({"model": "sql", "prompt": "hi", field: value}).replace("Infinity", "1e400")
    message = refused(
        http.post("/v1/completions", content=content, headers={"content-type": "application/json"}), param
    )
    assert "\n" not in message
    assert len(message) < 300
    assert engine.requests == []


CHAT = {"model": "sql", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": "hi"}, "messages: must be a list"),
        ({"messages": []}, "messages: must hold at least 1 item"),
        ({"messages": ["hi"]}, "messages.0: must be an object"),
        ({"messages": [{"role": "user", "content": [{"text": 1}]}]}, 'like {"type": "text", "text": "…"}'),
        ({"experts": ["sql"]}, "experts: must be an object"),
        ({"stream": True, "stream_options": []}, "stream_options: must be an object"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids: may hold at most 128 items"),
        ({"logit_bias": {"a": 1}}, 'as in {"42": -100}'),
        ({"response_format": {"type": "xml"}}, "its type must be one of 'text', 'json_object', 'json_schema'"),
        ({"response_format": {}}, "response_format: needs a type"),
        ({"response_format": "json"}, "response_format: must be an object"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_json(http: httpx.Client, fields, message: str):
    error = http.post("/v1/chat/completions", json={**CHAT, **fields}).json()["error"]
    assert message in error["message"]
    assert error["code"] == "invalid_value"


@pytest.mark.parametrize("body", [{}, {"prompt": None}])
def test_required_fields(http: httpx.Client, body: dict):
    assert refused(http.post("/v1/completions", json={"model": "sql", **body}), "prompt") == "prompt is required"


def test_without_a_model_the_router_chooses(http: httpx.Client):
    reply = http.post("/v1/completions", json={"prompt": "some sql"})
    assert (reply.json()["model"], reply.headers["x-overtone-confidence"]) == ("sql", "0.9000")
    assert http.post("/v1/completions", json={"prompt": "hi", "experts": {"sql": 1}}).json()["model"] == "sql"


@pytest.mark.parametrize("fields", [{}, {"min_tokens": 100}])
def test_as_many_tokens_as_fit(http: httpx.Client, engine: FakeEngine, fields):
    assert post(http, max_tokens=-1, **fields).status_code == 200
    assert engine.requests[0].params.max_tokens == MAX_MODEL_LEN - 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000,
    ],
)
def test_a_body_that_is_not_a_json_object(http: httpx.Client, content: bytes):
    message = refused(http.post("/v1/completions", content=content, headers={"content-type": "application/json"}), None)
    assert "JSON" in message


def test_a_pair_of_surrogates_is_a_character(http: httpx.Client, engine: FakeEngine):
    content = b'{"model": "sql", "prompt": "\\ud83d\\ude00"}'
    assert (
        http.post("/v1/completions", content=content, headers={"content-type": "application/json"}).status_code == 200
    )
    assert bytes(engine.requests[0].prompt).decode() == "😀"


def test_too_many_choices(http: httpx.Client):
    assert "300 choices" in refused(post(http, prompt=["a"] * 100, n=3), "prompt")
