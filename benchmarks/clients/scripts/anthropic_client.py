"""anthropic: messages, streams, tools and token counts."""

from anthropic import Anthropic, AsyncAnthropic, NotFoundError
from calls import CITY, HI, MODEL, URL, report

client = Anthropic(base_url=URL, api_key="unused", max_retries=0)
TOOL = {"name": "weather", "description": "The weather of a city.", "input_schema": CITY}


def message():
    reply = client.messages.create(model=MODEL, messages=HI, max_tokens=8, system="Be brief.")
    assert reply.content[0].type == "text"
    assert reply.stop_reason in ("end_turn", "max_tokens")


def streamed():
    with client.messages.stream(model=MODEL, messages=HI, max_tokens=8) as stream:
        assert stream.get_final_message().usage.output_tokens > 0


async def asynchronous():
    async with AsyncAnthropic(base_url=URL, api_key="unused", max_retries=0) as other:
        assert (await other.messages.create(model=MODEL, messages=HI, max_tokens=8)).role == "assistant"


def count_tokens():
    assert client.messages.count_tokens(model=MODEL, messages=HI).input_tokens > 0


def tool_called_and_answered():
    choice = {"type": "any", "disable_parallel_tool_use": True}
    fields = {"model": MODEL, "tools": [TOOL], "max_tokens": 100}
    reply = client.messages.create(messages=HI, tool_choice=choice, **fields)
    call = next(block for block in reply.content if block.type == "tool_use")
    assert call.input["city"] in ("Bonn", "Rome")
    result = [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]
    turns = [*HI, {"role": "assistant", "content": reply.content}, {"role": "user", "content": result}]
    client.messages.create(messages=turns, **{**fields, "max_tokens": 8})


def tool_called_streamed():
    choice = {"type": "tool", "name": "weather"}
    fields = {"model": MODEL, "messages": HI, "tools": [TOOL], "max_tokens": 100, "tool_choice": choice}
    with client.messages.stream(**fields) as stream:
        assert stream.get_final_message().content[0].input["city"] in ("Bonn", "Rome")


def unknown_model():
    try:
        client.messages.create(model="no such model", messages=HI, max_tokens=8)
    except NotFoundError:
        return
    raise AssertionError("an unknown model was answered")


report([message, streamed, asynchronous, count_tokens, tool_called_and_answered, tool_called_streamed, unknown_model])
