"""Anthropic's Messages API: bodies, replies and events in the shapes that its clients send and read."""

import json

import httpx
import pytest

from serve.config import ApiSettings
from tests.serve.api.fakes import FakeEngine, fake_service, live, says
from tests.serve.api.grammar.test_tools import CALL, WEATHER, hermes, hermes_server, speaking  # noqa: F401
from tests.serve.api.openai.test_chat import HI, prompt_of

TOOL = {
    "name": "weather",
    "description": "of a place",
    "input_schema": WEATHER["function"]["parameters"],
    "cache_control": {"type": "ephemeral"},
}


def ask(http: httpx.Client, path: str = "/v1/messages", **fields) -> httpx.Response:
    return http.post(path, json={"model": "sql", "max_tokens": 99, "messages": HI, **fields})


def events_of(reply: httpx.Response) -> list[dict]:
    events = []
    for block in reply.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_a_message(http: httpx.Client, engine: FakeEngine):
    system = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    turns = [
        *HI,
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": [{"type": "text", "text": "so"}]},
    ]
    reply = ask(http, system=system, messages=turns, temperature=0.5, top_k=5).json()
    assert (reply["type"], reply["role"], reply["model"]) == ("message", "assistant", "sql")
    assert reply["content"] == [{"type": "text", "text": "hello"}]
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("end_turn", None)
    assert reply["usage"]["output_tokens"] == 6
    assert prompt_of(engine) == "s:be brief|u:hi|a:yes?|u:so|a:"
    params = engine.requests[0].params
    assert (params.temperature, params.top_k, params.max_tokens) == (0.5, 5, 99)


def test_cached_tokens_are_counted_apart(http: httpx.Client, engine: FakeEngine):
    engine.cached_tokens = 4
    usage = ask(http).json()["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (3, 4)


def test_why_it_stopped(http: httpx.Client):
    assert ask(http, max_tokens=2).json()["stop_reason"] == "max_tokens"
    reply = ask(http, stop_sequences=["ll"]).json()
    assert (reply["stop_reason"], reply["stop_sequence"], reply["content"][0]["text"]) == ("stop_sequence", "ll", "he")


def test_its_events(http: httpx.Client):
    reply = ask(http, stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = events_of(reply)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(event["delta"]["text"] for event in events[2:-3]) == "hello"
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 6


def test_tools(hermes):  # noqa: F811
    engine, http, _ = hermes
    engine.model = says(f"So.{CALL}")
    reply = ask(http, tools=[TOOL]).json()
    text, call = reply["content"]
    assert (reply["stop_reason"], text["text"], call["type"]) == ("tool_use", "So.", "tool_use")
    assert (call["name"], call["input"]) == ("weather", {"city": "Bonn"})
    events = events_of(ask(http, tools=[TOOL], stream=True))
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["text", "tool_use"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    written = "".join(delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta")
    assert json.loads(written) == {"city": "Bonn"}
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "sunny"}]}]
    turns = [*HI, {"role": "assistant", "content": reply["content"]}, {"role": "user", "content": results}]
    engine.model = says("Sunny.")
    assert ask(http, tools=[TOOL], messages=turns).json()["stop_reason"] == "end_turn"
    assert prompt_of(engine).endswith(
        'a:So.<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>|'
        "t:<tool_response>sunny</tool_response>|a:"
    )


@pytest.mark.parametrize(
    ("choice", "status"),
    [
        ({"type": "auto"}, 200),
        ({"type": "none"}, 200),
        ({"type": "any"}, 400),
        ({"type": "tool", "name": "weather"}, 400),
    ],
)
def test_a_model_without_tools(http: httpx.Client, choice, status: int):
    assert ask(http, tools=[TOOL], tool_choice=choice).status_code == status


def test_thinking_is_a_block():
    with speaking("hermes", reasoning="qwen3") as (engine, http):
        engine.model = says("hm</think>yes")
        reply = ask(http, thinking={"type": "enabled", "budget_tokens": 1024}).json()
        assert [block["type"] for block in reply["content"]] == ["thinking", "text"]
        assert prompt_of(engine).endswith("a:<think>\n")
        turns = [*HI, {"role": "assistant", "content": reply["content"]}, *HI]
        assert ask(http, messages=turns, thinking={"type": "disabled"}).status_code == 200
        assert prompt_of(engine).endswith("a:")


def test_counting(http: httpx.Client, engine: FakeEngine):
    counted = ask(http, "/v1/messages/count_tokens").json()
    assert counted == {"input_tokens": ask(http).json()["usage"]["input_tokens"]}
    assert len(engine.requests) == 1


def test_keys_come_in_anthropics_header():
    with live(fake_service(FakeEngine()), ApiSettings(api_keys=("key",))) as url, httpx.Client(base_url=url) as http:
        assert ask(http).status_code == 401
        assert http.post("/v1/messages", json={"messages": HI}, headers={"x-api-key": "key"}).status_code == 200
        assert http.post("/v1/messages", json={"messages": HI}, headers={"x-api-key": "no"}).status_code == 401


def test_experts_and_routing(http: httpx.Client):
    assert ask(http, model="auto", messages=[{"role": "user", "content": "some sql"}]).json()["expert"] == "sql"
    assert ask(http, model="auto", experts={"sql": 1, "poetry": 0.5}).json()["model"] == "sql+poetry"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 600}, "messages"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"mcp_servers": []}, "mcp_servers"),
    ],
)
def test_what_is_refused(http: httpx.Client, engine: FakeEngine, fields, param: str):
    reply = ask(http, **fields)
    body = reply.json()
    assert (reply.status_code, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert body["error"]["param"] == param, body
    assert engine.requests == []


def test_errors_have_anthropics_types(http: httpx.Client, engine: FakeEngine):
    assert ask(http, model="none").json()["error"]["type"] == "not_found_error"
    engine.output_error = "broken"
    assert ask(http).json()["error"]["type"] == "api_error"
    assert events_of(ask(http, stream=True))[-1]["error"] == {
        "type": "api_error",
        "message": "broken",
        "param": None,
        "code": "internal_error",
    }
