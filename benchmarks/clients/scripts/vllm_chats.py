"""What vLLM 0.33.0's tests of chats, tools, responses and Anthropic's messages expect, asked with openai.

Each call is named after the test whose expectations it states. Tests that expect one model's words are left out.
"""

import json
import re

from calls import CITY, HI, MODEL, TOOL, URL, ask, report
from openai import BadRequestError, OpenAI

client = OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0)
FIELDS = {"model": MODEL, "messages": HI, "max_completion_tokens": 5, "temperature": 0.0}
# Small models fill an open object until the length cuts it.
NONE = {"type": "object", "properties": {}, "additionalProperties": False}
TIME = {"type": "function", "function": {"name": "now", "parameters": NONE}}


def create(**fields):
    return client.chat.completions.create(**{**FIELDS, **fields})


def structured(**fields):
    return create(max_completion_tokens=100, **fields).choices[0]


def refused(**fields):
    """The request is answered with 400, and the server continues."""
    try:
        create(**fields)
    except BadRequestError:
        assert create().choices
        return
    raise AssertionError("it was not refused")


def no_logprobs_chat():
    assert create(logprobs=False).choices[0].logprobs is None


def zero_and_some_logprobs_chat():
    for number in (0, 5):
        found = create(logprobs=True, top_logprobs=number).choices[0].logprobs.content
        assert all(len(token.top_logprobs) == number for token in found)


def too_many_chat_logprobs():
    refused(logprobs=True, top_logprobs=21)
    refused(logprobs=True, top_logprobs=30, stream=True)


def chat_streaming():
    whole = create().choices[0].message.content
    chunks = list(create(stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks].count(None) == len(chunks) - 1


def chat_completion_stream_options():
    chunks = list(create(stream=True, stream_options={"include_usage": True}))
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


def structured_outputs_choice_chat_logprobs():
    extra = {"structured_outputs": {"choice": ["Python", "Java", "Rust"]}}
    found = structured(extra_body=extra, logprobs=True, top_logprobs=5)
    assert found.message.content in ("Python", "Java", "Rust")
    assert all(token.logprob >= -9999.0 for content in found.logprobs.content for token in content.top_logprobs)


def structured_outputs_json_chat():
    assert json.loads(structured(extra_body={"structured_outputs": {"json": CITY}}).message.content)["city"]


def structured_outputs_regex_chat():
    pattern = r"((25[0-5]|(2[0-4]|1\d|[1-9]|)\d)\.){3}(25[0-5]|(2[0-4]|1\d|[1-9]|)\d)"
    assert re.fullmatch(pattern, structured(extra_body={"structured_outputs": {"regex": pattern}}).message.content)


def structured_outputs_type_error():
    refused(extra_body={"structured_outputs": {"regex": {"not": "a text"}}})


def invalid_json_schema_regex_and_grammar():
    refused(extra_body={"structured_outputs": {"json": {"type": "nothing"}}})
    refused(extra_body={"structured_outputs": {"regex": "[.*"}})
    refused(extra_body={"structured_outputs": {"grammar": ""}})


def response_formats():
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    assert set(json.loads(structured(response_format=schema).message.content)) == {"city"}
    assert create(response_format={"type": "text"}).choices[0].message.content is not None


def complex_message_content():
    parts = [{"type": "text", "text": "Write 7"}, {"type": "text", "text": "as a Roman numeral."}]
    assert create(messages=[{"role": "user", "content": parts}]).choices


def long_seed():
    for seed in (2**63, -(2**63) - 1):
        refused(seed=seed)


def n_parameter():
    for number in (1, 3):
        reply = create(n=number, temperature=1.0, seed=3)
        assert [choice.index for choice in reply.choices] == list(range(number))
        again = create(n=number, temperature=1.0, seed=3)
        assert [choice.message.content for choice in again.choices] == [c.message.content for c in reply.choices]
        chunks = list(create(n=number, stream=True, temperature=1.0))
        assert {chunk.choices[0].index for chunk in chunks} == set(range(number))


def logit_bias():
    assert create(logit_bias={"1": 1.0}).choices
    for bias in ({"99999999": 1.0}, {"one": 1.0}, {"1": "much"}):
        refused(logit_bias=bias)


def continue_final_message():
    turns = [*HI, {"role": "assistant", "content": "It is V"}]
    extra = {"add_generation_prompt": False, "continue_final_message": True}
    assert not (create(messages=turns, extra_body=extra).choices[0].message.content or "").startswith("It is V")


def function_tool_use():
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        fields = {"tools": [TOOL, TIME], "tool_choice": choice, "max_completion_tokens": 100}
        fields["parallel_tool_calls"] = False
        call = create(**fields).choices[0].message.tool_calls[0]
        assert call.id
        assert isinstance(json.loads(call.function.arguments), dict)
        parts = [p for chunk in create(**fields, stream=True) for p in chunk.choices[0].delta.tool_calls or ()]
        assert parts[0].id
        first = "".join(part.function.arguments or "" for part in parts if part.index == 0)
        assert isinstance(json.loads(first), dict)
        if choice is named:
            assert call.function.name == parts[0].function.name == "weather"
    assert create(tools=[TOOL], tool_choice="auto").choices
    assert list(create(tools=[TOOL], tool_choice="auto", stream=True))


def no_args_tool_call():
    fields = {"tools": [TIME], "tool_choice": "required", "max_completion_tokens": 100, "parallel_tool_calls": False}
    message = create(**fields).choices[0].message
    (call,) = message.tool_calls
    assert isinstance(json.loads(call.function.arguments), dict)
    turns = [*HI, message, {"role": "tool", "tool_call_id": call.id, "content": "noon"}]
    assert create(messages=turns, tools=[TIME]).choices


def inconsistent_tool_choice_and_tools():
    refused(tool_choice={"type": "function", "function": {"name": "weather"}})
    refused(tools=[TIME], tool_choice={"type": "function", "function": {"name": "weather"}})


def max_tokens_with_tool_choice_required():
    found = create(tools=[TOOL], tool_choice="required", max_completion_tokens=1).choices[0]
    assert found.finish_reason == "length"


def tokenize_chat():
    found = ask("/tokenize", {"model": MODEL, "messages": HI}).json()
    assert found["count"] == len(found["tokens"]) == create().usage.prompt_tokens
    found = ask("/tokenize", {"model": MODEL, "messages": HI, "tools": [TOOL]}).json()
    assert found["count"] == create(tools=[TOOL]).usage.prompt_tokens


def responses_basic_and_max_tokens():
    reply = client.responses.create(model=MODEL, input="Write 7.", max_output_tokens=16, store=False)
    assert reply.status in ("completed", "incomplete")
    cut = client.responses.create(model=MODEL, input="Write a story.", max_output_tokens=1, store=False)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def responses_streaming_types():
    events = list(client.responses.create(model=MODEL, input="Write 7.", max_output_tokens=8, store=False, stream=True))
    types = [event.type for event in events]
    assert (types[0], types[1]) == ("response.created", "response.in_progress")
    assert types[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == events[-1].response.output_text


def responses_streaming_logprobs():
    fields = {"model": MODEL, "input": "Write 7.", "max_output_tokens": 8, "store": False}
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    reply = client.responses.create(**fields, **asked)
    assert all(len(token.top_logprobs) == 2 for token in reply.output[0].content[0].logprobs)


def anthropic_messages():
    body = {"model": MODEL, "max_tokens": 8, "system": "Be brief.", "messages": HI}
    reply = ask("/v1/messages", body).json()
    assert (reply["role"], reply["type"]) == ("assistant", "message")
    assert reply["stop_reason"] in ("end_turn", "max_tokens")
    text = ask("/v1/messages", {**body, "stream": True}).text
    names = re.findall(r"^event: (.*)$", text, re.MULTILINE)
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])


def anthropic_tool_call():
    tool = {"name": "weather", "input_schema": CITY}
    once = {"type": "any", "disable_parallel_tool_use": True}
    body = {"model": MODEL, "max_tokens": 100, "messages": HI, "tools": [tool], "tool_choice": once}
    reply = ask("/v1/messages", body).json()
    assert reply["stop_reason"] == "tool_use"
    assert reply["content"][-1]["name"] == "weather"
    assert '"input_json_delta"' in ask("/v1/messages", {**body, "stream": True}).text


report(
    [
        *(no_logprobs_chat, zero_and_some_logprobs_chat, too_many_chat_logprobs, chat_streaming),
        *(chat_completion_stream_options, structured_outputs_choice_chat_logprobs, structured_outputs_json_chat),
        *(structured_outputs_regex_chat, structured_outputs_type_error, invalid_json_schema_regex_and_grammar),
        *(response_formats, complex_message_content, long_seed, n_parameter, logit_bias, continue_final_message),
        *(function_tool_use, no_args_tool_call, inconsistent_tool_choice_and_tools),
        *(max_tokens_with_tool_choice_required, tokenize_chat, responses_basic_and_max_tokens),
        *(responses_streaming_types, responses_streaming_logprobs, anthropic_messages, anthropic_tool_call),
    ]
)
