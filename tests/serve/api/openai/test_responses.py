"""OpenAI's Responses API, through its own client."""

import json

import httpx
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.serve.api.fakes import FakeEngine, says
from tests.serve.api.grammar.test_tools import CALL, WEATHER, hermes, hermes_server, speaking  # noqa: F401
from tests.serve.api.openai.test_chat import prompt_of, refused

FLAT = {"type": "function", **WEATHER["function"]}


def respond(http: httpx.Client, **fields) -> httpx.Response:
    return http.post("/v1/responses", json={"model": "sql", "input": "hi", **fields})


def test_a_response(openai: OpenAI, engine: FakeEngine):
    reply = openai.responses.create(model="sql", input="hi", instructions="be brief", max_output_tokens=9, user="ann")
    assert (reply.object, reply.status, reply.model, reply.output_text) == ("response", "completed", "sql", "hello")
    assert (reply.error, reply.incomplete_details, reply.instructions) == (None, None, "be brief")
    assert reply.id.startswith("resp_")
    (item,) = reply.output
    assert (item.type, item.role, item.status, item.content[0].type) == (
        "message",
        "assistant",
        "completed",
        "output_text",
    )
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.total_tokens) == (18, 6, 24)
    assert prompt_of(engine) == "s:be brief|u:hi|a:"
    assert engine.requests[0].params.max_tokens == 9


def test_its_events_are_numbered_and_end_in_the_whole(openai: OpenAI, engine: FakeEngine):
    engine.model = says("héllo")
    events = list(openai.responses.create(model="sql", input="hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type.endswith(".delta")) == "héllo"
    assert events[-1].response.output_text == "héllo"
    assert events[0].response.output == []


def test_stop_strings_and_text_of_a_given_length(http: httpx.Client, engine: FakeEngine):
    reply = respond(http, stop="ll", ignore_eos=True).json()
    assert (reply["status"], reply["output"][0]["content"][0]["text"]) == ("completed", "he")
    assert engine.requests[-1].params.ignore_eos
    respond(http, stop=None)
    assert not engine.requests[-1].params.ignore_eos
    assert respond(http, stop=1).json()["error"]["param"] == "stop"


def test_openais_streaming_helper(openai: OpenAI):
    with openai.responses.stream(model="sql", input="hi") as stream:
        assert stream.get_final_response().output_text == "hello"


def test_the_length_makes_it_incomplete(openai: OpenAI):
    reply = openai.responses.create(model="sql", input="hi", max_output_tokens=2)
    assert (reply.status, reply.incomplete_details.reason, reply.output_text) == (
        "incomplete",
        "max_output_tokens",
        "he",
    )
    *_, last = openai.responses.create(model="sql", input="hi", max_output_tokens=2, stream=True)
    assert (last.type, last.response.output[0].status) == ("response.incomplete", "incomplete")


def test_experts_and_routing(http: httpx.Client):
    routed = respond(http, model=None, input="some sql")
    assert (routed.json()["expert"], routed.headers["x-overtone-confidence"]) == ("sql", "0.9000")
    assert respond(http, model="auto", experts={"sql": 1, "poetry": 0.5}).json()["model"] == "sql+poetry"


def test_calls_and_their_outputs(hermes):  # noqa: F811
    engine, _, client = hermes
    engine.model = says(f"So.{CALL}")
    first = client.responses.create(model="sql", input="hi", tools=[FLAT])
    text, call = first.output
    assert (text.content[0].text, call.type, call.name) == ("So.", "function_call", "weather")
    assert json.loads(call.arguments) == {"city": "Bonn"}
    events = list(client.responses.create(model="sql", input="hi", tools=[FLAT], stream=True))
    arguments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(arguments)) == {"city": "Bonn"}
    assert [event.item.type for event in events if event.type == "response.output_item.done"] == [
        "message",
        "function_call",
    ]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    engine.model = says("Sunny.")
    assert client.responses.create(model="sql", input=items, tools=[FLAT]).output_text == "Sunny."
    prompt = prompt_of(engine)
    assert prompt.endswith(
        'u:hi|a:So.<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>|'
        "t:<tool_response>sunny</tool_response>|a:"
    )


def test_a_schema_and_a_parsed_reply(openai: OpenAI, engine: FakeEngine):
    pytest.importorskip("llguidance")

    class Age(BaseModel):
        age: int

    engine.model = says('{"age": 3}')
    reply = openai.responses.parse(model="sql", input="hi", text_format=Age)
    assert reply.output_parsed == Age(age=3)
    assert engine.requests[0].mask is not None


def test_reasoning_is_an_item():
    with speaking("hermes", reasoning="qwen3") as (engine, http):
        engine.model = says("<think>hm</think>yes")
        reasoning, message = respond(http, reasoning={"effort": "low", "summary": None}).json()["output"]
        assert (reasoning["type"], reasoning["content"][0]["text"]) == ("reasoning", "hm")
        turns = [{"role": "user", "content": "hi"}, reasoning, message, {"role": "user", "content": "more"}]
        assert respond(http, input=turns).status_code == 200


def test_logprobs(http: httpx.Client):
    reply = respond(http, include=["message.output_text.logprobs"], top_logprobs=2).json()
    records = reply["output"][0]["content"][0]["logprobs"]
    assert [record["logprob"] for record in records] == [-0.5] * 6
    assert len(records[0]["top_logprobs"]) == 2


def test_no_record_is_lost_where_text_is_held_back(hermes):  # noqa: F811
    engine, _, client = hermes
    engine.model = says("a <tool> b")
    fields = {"include": ["message.output_text.logprobs"], "tools": [FLAT]}
    events = list(client.responses.create(model="sql", input="hi", stream=True, **fields))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [record.token for delta in deltas for record in delta.logprobs] == [*"a <tool> b"]
    (item,) = events[-1].response.output
    assert len(item.content[0].logprobs) == len("a <tool> b") + 1


def test_a_failure_is_the_last_event(http: httpx.Client, engine: FakeEngine):
    engine.output_error = "broken"
    lines = respond(http, stream=True).text.strip().split("\n\n")
    name, data = lines[-1].split("\n")
    assert name == "event: error"
    event = json.loads(data.removeprefix("data: "))
    assert (event["type"], event["message"], event["sequence_number"]) == ("error", "broken", len(lines) - 1)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"store": True}, "store", "invalid_value"),
        ({"previous_response_id": "r"}, "previous_response_id", "unsupported_field"),
        ({"background": True}, "background", "unsupported_field"),
        ({"truncation": "auto"}, "truncation", "unsupported_field"),
        ({"nonsense": 1}, "nonsense", "unknown_field"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"type": "image_generation_call"}]}, "input.0.type", "invalid_value"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0", "invalid_value"),
        ({"input": [{"role": "owner", "content": "x"}]}, "input.0.role", "invalid_value"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.arguments", "invalid_value"),
        ({"input": [{"type": "function_call", "name": "", "arguments": "", "call_id": ""}]}, None, "invalid_value"),
        ({"input": "x" * 600}, "input", "context_length_exceeded"),
        ({"max_output_tokens": 600}, "input", "context_length_exceeded"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "invalid_value"),
        ({"include": ["file_search_call.results"]}, "include.0", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "invalid_value"),
        ({"stream_options": {"include_obfuscation": 0}}, "stream_options.include_obfuscation", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options.include_usage", "unknown_field"),
    ],
)
def test_what_is_refused(http: httpx.Client, engine: FakeEngine, fields, param, code):
    reply = respond(http, **fields)
    if param is None:
        assert reply.status_code == 400
        assert reply.json()["error"]["param"].startswith("input.")
    else:
        refused(reply, param, code)
    assert engine.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False},
        {"metadata": {"a": "b"}},
        {"service_tier": "auto"},
        {"prompt_cache_key": "k"},
        {"include": ["reasoning.encrypted_content"]},
        {"truncation": "disabled"},
        {"reasoning": {"effort": "low"}},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
        {"tools": [FLAT], "tool_choice": "auto"},
    ],
)
def test_what_has_no_effect(http: httpx.Client, fields):
    assert respond(http, **fields).json()["output"][0]["content"] == respond(http).json()["output"][0]["content"]
