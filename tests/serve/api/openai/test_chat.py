"""Chats, through OpenAI's own client, synchronous and not."""

import dataclasses
import json
from pathlib import Path

import httpx
import openai as openai_package
import pytest
from openai import AsyncOpenAI, OpenAI

from serve.api.errors import ApiError
from serve.api.generate.settings import ChatTemplate
from tests.serve.api.fakes import EOS, FakeEngine, fake_service, live, says

HI = [{"role": "user", "content": "hi"}]


def chat(http: httpx.Client, **fields) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"model": "sql", "messages": HI, **fields})


def refused(reply: httpx.Response, param: str, code: str | None = None) -> str:
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), reply.text
    assert code in (None, error["code"])
    return error["message"]


def prompt_of(engine: FakeEngine) -> str:
    return bytes(token if token != EOS else ord("|") for token in engine.requests[-1].prompt).decode()


@pytest.mark.promise(number=16)
def test_a_plain_chat(openai: OpenAI, engine: FakeEngine):
    reply = openai.chat.completions.create(model="sql", messages=HI)
    assert reply.id.startswith("chatcmpl-")
    assert (reply.object, reply.model) == ("chat.completion", "sql")
    assert reply.system_fingerprint.startswith("fp_")
    (choice,) = reply.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content, choice.message.refusal) == ("assistant", "hello", None)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 6)
    assert prompt_of(engine) == "u:hi|a:"


async def test_the_asynchronous_client(url: str, engine: FakeEngine):
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=20) as client:
        reply = await client.chat.completions.create(model="sql", messages=HI)
        assert reply.choices[0].message.content == "hello"
        stream = await client.chat.completions.create(model="sql", messages=HI, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "hello"
        with pytest.raises(openai_package.NotFoundError):
            await client.chat.completions.create(model="none", messages=HI)


def test_a_streamed_chat_is_the_plain_one_in_pieces(openai: OpenAI, engine: FakeEngine):
    engine.model = says("héllo 😀")
    chunks = list(openai.chat.completions.create(model="sql", messages=HI, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.content or "" for delta in deltas) == "héllo 😀"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_in_streams(openai: OpenAI):
    options = {"include_usage": True}
    *_, last = openai.chat.completions.create(model="sql", messages=HI, stream=True, stream_options=options)
    assert (last.choices, last.usage.completion_tokens) == ([], 6)


def test_openais_streaming_helper(openai: OpenAI):
    with openai.chat.completions.stream(model="sql", messages=HI) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == "hello"


def test_several_choices_stream_with_their_index(openai: OpenAI, engine: FakeEngine):
    engine.model = lambda request: [ord("a") + request.params.seed, EOS]
    texts, roles = {0: "", 1: ""}, []
    for chunk in openai.chat.completions.create(model="sql", messages=HI, n=2, seed=0, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        roles.append(chunk.choices[0].delta.role)
    assert texts == {0: "a", 1: "b"}
    assert roles.count("assistant") == 2


def test_logprobs_in_the_shape_of_a_chat(openai: OpenAI, engine: FakeEngine):
    engine.model = says("é")
    reply = openai.chat.completions.create(model="sql", messages=HI, logprobs=True, top_logprobs=2, max_tokens=2)
    first, second = reply.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("bytes:\\xc3", [0xC3], -0.5)
    assert (second.token, second.bytes) == ("bytes:\\xa9", [0xA9])
    assert [(top.bytes, top.logprob) for top in first.top_logprobs] == [([0xC3], -0.5), ([0xC4], -1.5)]
    reply = openai.chat.completions.create(model="sql", messages=HI, logprobs=True)
    assert [entry.top_logprobs for entry in reply.choices[0].logprobs.content] == [[]] * 3


def test_stop_strings_and_headers(openai: OpenAI, engine: FakeEngine):
    raw = openai.chat.completions.with_raw_response.create(model="auto", messages=HI, stop="ll")
    assert (raw.headers["x-overtone-expert"], raw.headers["x-overtone-confidence"]) == ("backbone", "0.6000")
    (choice,) = raw.parse().choices
    assert (choice.message.content, choice.finish_reason, choice.stop_reason) == ("he", "stop", "ll")


def test_routing_reads_the_last_message_of_the_user(openai: OpenAI):
    turns = [
        {"role": "system", "content": "you know poetry"},
        {"role": "user", "content": "a poetry"},
        {"role": "assistant", "content": "poetry"},
        {"role": "user", "content": "now sql"},
    ]
    assert openai.chat.completions.create(model="auto", messages=turns).model == "sql"
    assert openai.chat.completions.create(model="auto", messages=turns[:3]).model == "poetry"
    assert openai.chat.completions.create(model="poetry", messages=turns).model == "poetry"


def test_routing_without_a_user(http: httpx.Client):
    only_system = [{"role": "system", "content": "sql"}]
    assert "routing needs a message of the user" in refused(chat(http, model="auto", messages=only_system), "messages")
    assert chat(http, messages=only_system).status_code == 200


def test_parts_and_names_and_old_replies(http: httpx.Client, engine: FakeEngine):
    first = chat(http).json()["choices"][0]["message"]
    nulls = {"tool_calls": None, "function_call": None, "audio": None, "annotations": []}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "user", "content": parts, "name": "ann"}, first | nulls, *HI]
    assert chat(http, messages=turns).status_code == 200
    assert prompt_of(engine) == "u:a\nb|a:hello|u:hi|a:"


REPLY_KEYS = {
    "id": "m-1",
    "annotations": [{"type": "url_citation"}],
    "provider_specific_fields": {"a": None},
    "thinking_blocks": [{"thinking": "x"}],
    "refusal": None,
    "cache_control": {"type": "ephemeral"},
}


def test_a_reply_may_come_back_as_it_was(http: httpx.Client, engine: FakeEngine):
    turns = [*HI, {"role": "assistant", "content": None, **REPLY_KEYS}, *HI]
    assert chat(http, messages=turns).status_code == 200
    assert prompt_of(engine) == "u:hi|a:|u:hi|a:"
    for name in REPLY_KEYS.keys() - {"refusal", "cache_control"}:
        wrong = [{"role": "user", "content": "x", name: REPLY_KEYS[name]}]
        refused(chat(http, messages=wrong), f"messages.0.{name}", "unknown_field")


def test_reasoning_of_earlier_replies_goes_to_the_template():
    template = ChatTemplate("{% for m in messages %}[{{ m.reasoning_content }}]{% endfor %}")
    engine = FakeEngine()
    service = fake_service(engine)
    service.runtime = dataclasses.replace(service.runtime, chat_template=template)
    with live(service) as url, httpx.Client(base_url=url) as client:
        for name in ("reasoning_content", "reasoning"):
            assert chat(client, messages=[*HI, {"role": "assistant", name: "so"}]).status_code == 200
            assert prompt_of(engine) == "[][so]"


def test_hints_for_caches_have_no_effect(http: httpx.Client, engine: FakeEngine):
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "prompt_cache_breakpoint": True}
    assert chat(http, messages=[{"role": "user", "content": [part], "cache_control": {}}]).status_code == 200
    assert prompt_of(engine) == "u:a|a:"


HINTS = {
    "metadata": {"a": "b"},
    "service_tier": "flex",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "store": False,
}


@pytest.mark.parametrize("name", HINTS)
def test_hints_to_services_have_no_effect(http: httpx.Client, engine: FakeEngine, name: str):
    assert chat(http, **{name: HINTS[name]}).json()["choices"] == chat(http).json()["choices"]
    first, second = engine.requests
    assert (first.prompt, first.params, first.priority) == (second.prompt, second.params, second.priority)
    if name != "store":
        assert refused(chat(http, **{name: 3}), name, "invalid_value")


def test_the_reasoning_effort_is_a_variable_of_the_template():
    engine = FakeEngine()
    service = fake_service(engine)
    service.runtime = dataclasses.replace(service.runtime, chat_template=ChatTemplate("{{ reasoning_effort }}"))
    with live(service) as url, httpx.Client(base_url=url) as client:
        chat(client, reasoning_effort="low")
        assert prompt_of(engine) == "low"
        chat(client, reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"})
        assert prompt_of(engine) == "high"


def test_continuing_the_last_message(http: httpx.Client, engine: FakeEngine):
    turns = [*HI, {"role": "assistant", "content": "he"}]
    assert chat(http, messages=turns, continue_final_message=True, add_generation_prompt=False).status_code == 200
    assert prompt_of(engine) == "u:hi|a:he"
    assert chat(http, add_generation_prompt=False).status_code == 200
    assert prompt_of(engine) == "u:hi|"


def test_variables_of_the_template(http: httpx.Client, engine: FakeEngine):
    assert chat(http, chat_template_kwargs={"shout": True}).status_code == 200
    assert prompt_of(engine) == "u:HI|a:"
    for name in ("messages", "eos_token", "tools"):
        assert name in refused(chat(http, chat_template_kwargs={name: "x"}), "chat_template_kwargs")


def test_the_default_length_is_what_the_context_leaves(http: httpx.Client, engine: FakeEngine):
    chat(http)
    chat(http, max_completion_tokens=3)
    chat(http, max_tokens=4)
    chat(http, max_tokens=5, max_completion_tokens=5)
    chat(http, max_tokens=-1)
    assert [request.params.max_tokens for request in engine.requests] == [505, 3, 4, 5, 505]


def test_the_end_user_goes_to_the_log(http: httpx.Client, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="overtone.access"):
        chat(http, safety_identifier="s-7", user="ann")
        http.get("/health")
    assert "POST /v1/chat/completions 200" in caplog.text
    assert "user='s-7'" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("audio", {"voice": "x", "format": "mp3"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {"a": 1}),
        ("moderation", {"a": 1}),
        ("verbosity", "low"),
        ("store", True),
        ("prompt_cache_options", {"a": 1}),
        ("chat_template", "{{ 1 }}"),
        ("documents", [{"text": "x"}]),
        ("echo", True),
        ("best_of", 2),
        ("mm_processor_kwargs", {"a": 1}),
        ("include_reasoning", True),
        ("suffix", "x"),
        ("prompt", "x"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(http: httpx.Client, engine: FakeEngine, field, value):
    assert field in refused(chat(http, **{field: value}), field)
    assert engine.requests == []


@pytest.mark.parametrize(
    ("messages", "param", "message"),
    [
        ([], "messages", "at least 1"),
        ("hi", "messages", "a list"),
        ([{"role": "user"}], "messages.0.content", "is required"),
        ([{"role": "user", "content": None}], "messages.0.content", "is required"),
        ([{"role": "user", "content": []}], "messages.0.content", "not empty"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], None, "image_url"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], None, "input_audio"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content", "not like"),
        ([{"role": "user", "content": ["x"]}], "messages.0.content", "not like"),
        ([{"role": "user", "content": [{"type": {}, "text": "x"}]}], "messages.0.content", "not like"),
        ([{"role": "user", "content": "x", "nmae": "x"}], "messages.0.nmae", "unknown field"),
        ([{"role": "assistant", "content": False}], "messages.0.content", "string"),
        ([{"role": "function", "content": "x", "name": "f"}], "messages.0", "use tools"),
        ([{"role": "assistant", "content": "x", "function_call": {"name": "f"}}], "messages.0", "use tools"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages.0.tool_calls.0.function", "required"),
        ([{"role": "user", "content": "x", "tool_call_id": "1"}], "messages.0", "role tool"),
        ([{"role": [], "content": "x"}], "messages.0.role", "system"),
        ([{"role": "owner", "content": "x"}], "messages.0.role", "system"),
        ([3], "messages.0", "an object"),
        ([{"role": "developer", "content": "x"}], "messages", "no developers here"),
    ],
)
def test_wrong_messages(http: httpx.Client, messages, param, message):
    assert message in refused(chat(http, messages=messages), param or "messages.0.content")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"n": 300}, "n"),
    ],
)
def test_wrong_fields(http: httpx.Client, fields, param):
    refused(chat(http, **fields), param)


@pytest.mark.parametrize("length", [600, 600_000])
def test_too_long_a_chat(http: httpx.Client, length: int):
    long = [{"role": "user", "content": "x" * length}]
    refused(chat(http, messages=long), "messages", "context_length_exceeded")


def test_a_model_without_a_template():
    service = fake_service(FakeEngine())
    service.runtime = dataclasses.replace(service.runtime, chat_template=None)
    with live(service) as url, httpx.Client(base_url=url) as client:
        assert "--chat-template" in refused(chat(client), "messages", "no_chat_template")


def test_where_templates_are_found(tmp_path: Path):
    assert ChatTemplate.from_directory(tmp_path) is None
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "{{ bos_token }}D"}]
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.from_directory(tmp_path)
    assert template.variables == {"bos_token": "<s>", "eos_token": "</s>"}
    assert template.render(HI) == "<s>D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert ChatTemplate.from_directory(tmp_path).render(HI) == "J"
    (tmp_path / "mine.jinja").write_text("M")
    assert ChatTemplate.from_directory(tmp_path, tmp_path / "mine.jinja").render(HI) == "M"
    (tmp_path / "mine.jinja").write_text(" ")
    for path in ("mine.jinja", "missing.jinja"):
        with pytest.raises(ValueError, match=path):
            ChatTemplate.from_directory(tmp_path, tmp_path / path)


@pytest.mark.parametrize("source", ["{{ messages.__class__.__mro__ }}", "{{ open(1) }}", "{% include 'x' %}", "{{"])
def test_a_template_stays_in_its_sandbox(source: str):
    with pytest.raises(ApiError, match="chat template") as error:
        ChatTemplate(source).render(HI)
    assert (error.value.status, error.value.param) == (400, "messages")
