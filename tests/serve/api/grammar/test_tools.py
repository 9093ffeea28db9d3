"""Tools: what the prompt contains, how calls are parsed, and forced calls."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel

from serve.api.generate.prompts import message_format
from serve.api.generate.settings import ChatTemplate
from serve.api.grammar.structure import Structures, asked_calls, asked_structure
from serve.api.messages import Dialect
from serve.api.schemas import ChatRequest
from tests.serve.api.fakes import EOS, FakeEngine, byte_codec, fake_service, live, says
from tests.serve.api.openai.test_chat import HI, chat, prompt_of, refused

TEMPLATES = Path(__file__).parent / "templates"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"$ref": "#/$defs/unit"}},
            "required": ["city"],
            "$defs": {"unit": {"enum": ["C", "F"]}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
ARGUMENTS = {"city": "Bonn"}


@contextmanager
def speaking(family: str, reasoning: str = "none") -> Iterator[tuple[FakeEngine, httpx.Client]]:
    """A server whose model has the template of a family."""
    engine = FakeEngine()
    service = fake_service(engine)
    source = (TEMPLATES / f"{family}.jinja").read_text()
    service.runtime = dataclasses.replace(
        service.runtime, chat_template=ChatTemplate(source), dialect=Dialect.of(source, reasoning=reasoning)
    )
    with live(service) as url, httpx.Client(base_url=url, timeout=20) as http:
        yield engine, http


@pytest.fixture(scope="module")
def hermes_server() -> Iterator[tuple[FakeEngine, httpx.Client, OpenAI]]:
    with (
        speaking("hermes") as (engine, http),
        OpenAI(base_url=f"{http.base_url}/v1", api_key="unused", max_retries=0, timeout=20) as client,
    ):
        yield engine, http, client


@pytest.fixture
def hermes(hermes_server) -> tuple[FakeEngine, httpx.Client, OpenAI]:
    hermes_server[0].reset()
    return hermes_server


def test_a_call(hermes):
    engine, _, client = hermes
    engine.model = says(f"Let me see.\n{CALL}")
    reply = client.chat.completions.create(model="sql", messages=HI, tools=[WEATHER, NOW])
    (choice,) = reply.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.\n")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "weather", ARGUMENTS)
    assert call.id.startswith("call_")
    assert prompt_of(engine).startswith('s:Tools:weather({"type": "object", "properties": {"city"')
    assert 'now({"type": "object", "properties": {}})' in prompt_of(engine)


def test_a_streamed_call_is_the_plain_one(hermes):
    engine, _, client = hermes
    engine.model = says(f"{CALL}\n{CALL}")
    chunks = list(client.chat.completions.create(model="sql", messages=HI, tools=[WEATHER], stream=True))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    firsts = [part for part in parts if part.id]
    assert [(part.index, part.type, part.function.name) for part in firsts] == [
        (0, "function", "weather"),
        (1, "function", "weather"),
    ]
    assert len({part.id for part in firsts}) == 2
    for index in (0, 1):
        arguments = [part.function.arguments for part in parts if part.index == index]
        assert json.loads("".join(arguments)) == ARGUMENTS
        assert len(arguments) > 5
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_openais_helpers_read_calls(hermes):
    engine, _, client = hermes
    engine.model = says(CALL)

    class Weather(BaseModel):
        city: str

    tool = pydantic_function_tool(Weather, name="weather")
    message = client.chat.completions.parse(model="sql", messages=HI, tools=[tool]).choices[0].message
    assert message.tool_calls[0].function.parsed_arguments == Weather(city="Bonn")
    with client.chat.completions.stream(model="sql", messages=HI, tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds
    assert final.tool_calls[0].function.parsed_arguments == Weather(city="Bonn")


def test_the_answer_of_a_tool_goes_back(hermes):
    engine, http, client = hermes
    engine.model = says(CALL)
    first = client.chat.completions.create(model="sql", messages=HI, tools=[WEATHER]).choices[0].message
    turns = [*HI, first.model_dump(), {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}]
    engine.model = says("It is sunny.")
    reply = client.chat.completions.create(model="sql", messages=turns, tools=[WEATHER]).choices[0]
    assert (reply.finish_reason, reply.message.content, reply.message.tool_calls) == ("stop", "It is sunny.", None)
    assert 'a:<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>|t:<tool' in prompt_of(engine)
    broken = [*HI, {"role": "assistant", "content": None, "tool_calls": [call_object("weather", '{"a')]}]
    assert chat(http, messages=broken).status_code == 200
    assert '"arguments": "{\\"a"' in prompt_of(engine)


def call_object(name: str, arguments: str) -> dict:
    return {"id": "1", "type": "function", "index": 0, "function": {"name": name, "arguments": arguments}}


def test_tools_are_counted_with_the_prompt(hermes):
    engine, http, _ = hermes
    body = {"model": "sql", "messages": HI, "tools": [WEATHER]}
    http.post("/v1/chat/completions", json=body)
    assert tuple(http.post("/tokenize", json=body).json()["tokens"]) == engine.requests[-1].prompt
    assert b"weather" in bytes(token for token in engine.requests[-1].prompt if token < EOS)
    error = http.post("/tokenize", json={"prompt": "a", "tools": [WEATHER]}).json()["error"]
    assert (error["param"], error["message"]) == ("tools", "tools is only valid with messages")


def test_none_offers_no_tools(hermes):
    engine, http, _ = hermes
    engine.model = says(CALL)
    message = chat(http, tools=[WEATHER], tool_choice="none").json()["choices"][0]["message"]
    assert message["content"] == CALL
    assert "tool_calls" not in message
    assert prompt_of(engine) == "u:hi|a:"


def test_one_call_at_a_time(hermes):
    engine, http, _ = hermes
    engine.model = says(CALL + CALL)
    reply = chat(http, tools=[WEATHER], parallel_tool_calls=False).json()["choices"][0]
    assert len(reply["message"]["tool_calls"]) == 1


def test_several_choices_call_on_their_own(hermes):
    engine, http, _ = hermes
    engine.model = lambda request: [*(CALL if request.params.seed else "no").encode(), EOS]
    choices = chat(http, tools=[WEATHER], n=2, seed=0).json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "tool_calls"]


def test_a_call_that_the_length_cuts_says_so(hermes):
    engine, http, _ = hermes
    engine.model = says(CALL)
    choice = chat(http, tools=[WEATHER], max_tokens=50).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"')


def following(text: str):
    """A model that writes `text`, or what its mask allows if the mask excludes the text's next token."""

    def model(request):
        written: list[int] = []
        wanted = list(text.encode())
        for _ in range(200):
            logits = torch.zeros(EOS + 1)
            for rank, token in enumerate(b'B]}"'):
                logits[token] = 1 + rank * 0.1
            if len(written) < len(wanted):
                logits[wanted[len(written)]] = 9
            request.mask.mask(logits)
            token = int(logits.argmax())
            request.mask.accept(token)
            written.append(token)
            if token == EOS:
                break
        return written

    return model


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call(hermes, choice, stream: bool):
    pytest.importorskip("llguidance")
    engine, _, client = hermes
    engine.model = following("I would rather talk")
    fields = {"model": "sql", "messages": HI, "tools": [WEATHER], "tool_choice": choice}
    if stream:
        with client.chat.completions.stream(**fields) as events:
            events.until_done()
            got = events.get_final_completion().choices[0]
    else:
        got = client.chat.completions.create(**fields).choices[0]
    assert got.finish_reason == ("tool_calls" if choice == "required" else "stop")
    (call,) = got.message.tool_calls[:1]
    assert call.function.name == "weather"
    assert "city" in json.loads(call.function.arguments)


def test_a_forced_calls_arguments_are_streamed_as_they_come(hermes):
    pytest.importorskip("llguidance")
    engine, _, client = hermes
    engine.model = following('[{"name": "weather", "arguments": {"city": "Bonn on the Rhine"}}]')
    fields = {"model": "sql", "messages": HI, "tools": [WEATHER], "tool_choice": "required", "stream": True}
    parts = [
        call for chunk in client.chat.completions.create(**fields) for call in chunk.choices[0].delta.tool_calls or ()
    ]
    assert parts[0].function.name == "weather"
    assert "".join(part.function.arguments for part in parts).startswith('{"city": "Bonn on the Rhine"')
    assert len(parts) > len("Bonn on the Rhine")


@pytest.mark.parametrize("length", [1, 60, 70])
def test_a_forced_call_that_the_length_cuts_is_no_text(hermes, length: int):
    pytest.importorskip("llguidance")
    engine, _, client = hermes
    engine.model = following('[{"name": "weather", "arguments": {"city": "Bonn"}}, {"name": "weather", "ar')
    fields = {"model": "sql", "messages": HI, "tools": [WEATHER], "tool_choice": "required", "max_tokens": length}
    choice = client.chat.completions.create(**fields).choices[0]
    assert choice.finish_reason == "length"
    assert not choice.message.content
    assert len(choice.message.tool_calls or ()) == (length > 1)


STRICT = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
OPEN = {**NOW, "function": {"name": "now", "parameters": {"properties": {"zone": {"enum": ["UTC"]}}}}}


@pytest.mark.parametrize(
    ("parser", "right", "wrong"),
    [
        (
            "hermes",
            [
                "Hi <tool_",
                f"So:\n{CALL} and {CALL}",
                '<tool_call>[{"name": "now", "arguments": {"zone": 1}}]</tool_call>',
            ],
            ['<tool_call>{"name": "weather", "arguments": {"town', '<tool_call>{"name": "rain"', "<tool_call> x"],
        ),
        (
            "llama3_json",
            [
                'Hi {"name": "weather", "parameters": {"x"',
                '{"name": "weather", "parameters": {"city": "Bonn"}}; {"name":"now","parameters":{"zone": 1}}',
                '<|python_tag|>{"name": "weather", "parameters": {"city": "Bonn"}}',
                '{"name": "weathers", "x": 1}',
            ],
            ['{"name": "weather", "parameters": {"town', '<|python_tag|>{"name": "weather", "parameters": {"town'],
        ),
        (
            "mistral",
            [
                "Hi [TOOL",
                '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bonn"}}]',
                '[TOOL_CALLS]weather{"city": "Bonn", "unit": "C"}',
                '[TOOL_CALLS]now[ARGS]{"zone": 1}',
            ],
            ['[TOOL_CALLS]weather[ARGS]{"town', '[TOOL_CALLS] [{"name": "rain', "[TOOL_CALLS]rain{"],
        ),
    ],
)
def test_calls_that_the_model_makes_by_itself_are_kept_to_strict_schemas(parser, right, wrong):
    pytest.importorskip("llguidance")
    structures = Structures(byte_codec(), (EOS,))
    tools = ChatRequest(messages=HI, tools=[STRICT, OPEN]).offered_tools
    mask = structures.mask("tools", "calls", (parser, tools, {}))

    def taken(text: str) -> bool:
        one = mask.copy()
        for byte in text.encode():
            one.accept(byte)
        return one.error is None

    assert [text for text in right if not taken(text)] == []
    assert [text for text in wrong if taken(text)] == []


def test_a_tag_that_is_a_special_token_begins_a_strict_call():
    pytest.importorskip("llguidance")
    codec = byte_codec()
    codec.tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    body = ChatRequest(messages=HI, tools=[STRICT])
    shape = message_format(Dialect("mistral"), body)
    field, kind, (parser, tools, special) = asked_calls(codec, body, shape)
    assert (field, kind, parser, special) == ("tools", "calls", "mistral", {"[TOOL_CALLS]": EOS + 1})
    mask = Structures(codec, (EOS,)).mask(field, kind, (parser, tools, special))
    for token in (*b"So ", EOS + 1, *b'weather{"city": "B'):
        mask.accept(token)
    assert mask.error is None
    mask = Structures(codec, (EOS,)).mask(field, kind, (parser, tools, special))
    for token in (EOS + 1, *b'weather{"town'):
        mask.accept(token)
    assert mask.error is not None


def test_strict_tools_make_a_grammar_of_an_ordinary_chat(hermes):
    pytest.importorskip("llguidance")
    engine, http, _ = hermes
    engine.model = following('<tool_call>{"name": "weather", "arguments": {"city": "Bonn", "town": "x"}}</tool_call>')
    fields = {"model": "sql", "messages": HI}
    reply = http.post("/v1/chat/completions", json={**fields, "tools": [STRICT]}).json()
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    assert set(json.loads(call["function"]["arguments"])) <= {"city", "unit"}
    engine.model = says("hello")
    http.post("/v1/chat/completions", json={**fields, "tools": [WEATHER]})
    assert engine.requests[-1].mask is None
    http.post("/v1/chat/completions", json={**fields, "tools": [STRICT], "tool_choice": "none"})
    assert engine.requests[-1].mask is None
    bad = {**STRICT, "function": {**STRICT["function"], "parameters": {"not": {}}}}
    error = http.post("/v1/chat/completions", json={**fields, "tools": [bad]}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "tools")


@pytest.mark.parametrize("strict", [False, True])
def test_the_grammar_of_forced_calls(strict: bool):
    pytest.importorskip("llguidance")
    tool = {**WEATHER, "function": {**WEATHER["function"], "strict": strict}}
    body = ChatRequest.model_validate({"messages": HI, "tools": [tool, NOW], "tool_choice": "required"})
    structures = Structures(byte_codec(), (EOS,))

    def accepts(calls) -> bool:
        mask = structures.mask(*asked_structure(body))
        for token in [*json.dumps(calls).encode(), EOS]:
            mask.accept(token)
        return mask.error is None

    def weather(**arguments):
        return {"name": "weather", "arguments": arguments}

    assert accepts([weather(city="Bonn")])
    assert accepts([weather(city="Bonn", unit="C"), {"name": "now", "arguments": {}}])
    assert not accepts([weather(city="Bonn", unit="K")])
    assert not accepts([weather(unit="C")])
    assert not accepts([{"name": "other", "arguments": {}}])
    assert not accepts([])
    assert accepts([weather(city="Bonn", wind=1)]) != strict


def test_llamas_calls():
    with speaking("llama") as (engine, http):
        engine.model = says('{"name": "weather", "parameters": {"city": "Bonn"}}')
        message = chat(http, tools=[WEATHER]).json()["choices"][0]["message"]
        assert (message["content"], message["tool_calls"][0]["function"]["name"]) == (None, "weather")
        engine.model = says('{"name": "nobody", "parameters": {}}')
        assert chat(http, tools=[WEATHER]).json()["choices"][0]["message"]["content"].startswith('{"name"')
        turns = [*HI, message, {"role": "tool", "content": "sunny", "tool_call_id": "1"}]
        assert chat(http, messages=turns, tools=[WEATHER]).status_code == 200
        assert 'a:{"name": "weather", "parameters": {"city": "Bonn"}}|ipython:"sunny"|a:' in prompt_of(engine)


def test_mistrals_calls_begin_with_a_special_token():
    engine = FakeEngine()
    service = fake_service(engine)
    source = (TEMPLATES / "mistral.jinja").read_text()
    codec = byte_codec()
    codec.tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    service.runtime = dataclasses.replace(
        service.runtime, codec=codec, vocab_size=EOS + 2, chat_template=ChatTemplate(source), dialect=Dialect.of(source)
    )
    calls = f'[{{"name": "weather", "arguments": {json.dumps(ARGUMENTS)}}}]'
    engine.model = lambda request: [EOS + 1, *calls.encode(), EOS]
    with live(service) as url, httpx.Client(base_url=url) as http:
        message = chat(http, tools=[WEATHER]).json()["choices"][0]["message"]
        assert message["tool_calls"][0]["function"]["name"] == "weather"
        turns = [*HI, message, {"role": "tool", "content": "sunny", "tool_call_id": message["tool_calls"][0]["id"]}]
        assert chat(http, messages=turns, tools=[WEATHER]).status_code == 200
        # Without tools the special token is no text.
        assert chat(http).json()["choices"][0]["message"]["content"] == calls


def test_a_model_that_knows_no_tools_chats_and_says_so(http: httpx.Client, engine: FakeEngine):
    reply = chat(http, tools=[WEATHER])
    assert (reply.status_code, reply.headers["x-overtone-tools"]) == (200, "ignored")
    assert prompt_of(engine) == "u:hi|a:"
    assert "x-overtone-tools" not in chat(http, tools=[WEATHER], tool_choice="none").headers
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        refused(chat(http, tools=[WEATHER], tool_choice=choice), "tool_choice", "tools_not_supported")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "required"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "required"),
        ({"tools": [{"type": "function", "function": {"name": "f", "code": "x"}}]}, "tools.0.function.code", "unknown"),
        ({"tools": [NOW], "tool_choice": "any"}, "tool_choice", "required"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [NOW], "tool_choice": "required", "min_tokens": 2}, "min_tokens", "tool_choice"),
        ({"tools": [NOW] * 257}, "tools", "256"),
        ({"tools": [NOW], "parallel_tool_calls": 1}, "parallel_tool_calls", "boolean"),
    ],
)
def test_wrong_tools(http: httpx.Client, fields, param: str, message: str):
    assert message in refused(chat(http, **fields), param)


@pytest.mark.parametrize("fields", [{"tools": []}, {"tool_choice": "auto"}, {"parallel_tool_calls": False}])
def test_without_tools_there_is_nothing_to_choose(http: httpx.Client, fields):
    reply = chat(http, **fields)
    assert reply.status_code == 200
    assert "x-overtone-tools" not in reply.headers


def test_reasoning_is_split_off_where_the_server_was_told_to():
    with speaking("hermes", reasoning="qwen3") as (engine, http):
        engine.model = says("<think>\nhm\n</think>\n\nyes")
        message = chat(http).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("hm", "yes")
        engine.model = says("hm</think>yes")
        thinking = {"chat_template_kwargs": {"enable_thinking": True}}
        message = chat(http, **thinking).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("hm", "yes")
        with http.stream("POST", "/v1/chat/completions", json={"messages": HI, "stream": True, **thinking}) as stream:
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
        deltas = [event["choices"][0]["delta"] for event in events]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
        assert "".join(delta.get("content", "") for delta in deltas) == "yes"
        engine.model = says("yes")
        message = chat(http).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == (None, "yes")
