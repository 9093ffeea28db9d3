"""openai: chats, completions, responses, tools, parsed replies and embeddings; synchronous, asynchronous, streamed."""

from typing import Literal

from calls import FUNCTION, HI, MODEL, TOOL, URL, report
from openai import AsyncOpenAI, NotFoundError, OpenAI, pydantic_function_tool
from pydantic import BaseModel

client = OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0)
FLAT = {"type": "function", **FUNCTION, "strict": True}
FORCED = {"model": MODEL, "messages": HI, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}


class Answer(BaseModel):
    """A yes or a no."""

    answer: Literal["yes", "no"]


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Bonn", "Rome"]


def models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def chat():
    reply = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=8)
    assert reply.choices[0].message.role == "assistant"
    assert reply.usage.completion_tokens > 0


def chat_streamed():
    chunks = list(client.chat.completions.create(model=MODEL, messages=HI, max_tokens=8, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def chat_streaming_helper():
    with client.chat.completions.stream(model=MODEL, messages=HI, max_tokens=8) as stream:
        for _ in stream:
            pass


async def chat_async():
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0) as other:
        reply = await other.chat.completions.create(model=MODEL, messages=HI, max_tokens=8)
        assert reply.choices[0].message.content is not None
        async for _ in await other.chat.completions.create(model=MODEL, messages=HI, max_tokens=8, stream=True):
            pass


def reply_sent_back():
    message = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=8).choices[0].message
    client.chat.completions.create(model=MODEL, messages=[*HI, message.model_dump(), *HI], max_tokens=8)
    client.chat.completions.create(model=MODEL, messages=[*HI, message, *HI], max_tokens=8)


def completion():
    assert client.completions.create(model=MODEL, prompt="7", max_tokens=4, logprobs=1).choices[0].logprobs.tokens


def parsed():
    reply = client.chat.completions.parse(model=MODEL, messages=HI, response_format=Answer)
    assert reply.choices[0].message.parsed.answer in ("yes", "no")


def tools_offered():
    client.chat.completions.create(model=MODEL, messages=HI, tools=[TOOL], max_tokens=8)


def tool_called_and_answered():
    message = client.chat.completions.create(**FORCED).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    turns = [*HI, message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    client.chat.completions.create(model=MODEL, messages=turns, tools=[TOOL], max_tokens=8)


def tool_called_streamed():
    chunks = list(client.chat.completions.create(**FORCED, stream=True))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    assert parts[0].function.name == "weather"


def tool_parsed():
    tool = pydantic_function_tool(Weather, name="weather")
    choice = {"type": "function", "function": {"name": "weather"}}
    reply = client.chat.completions.parse(model=MODEL, messages=HI, tools=[tool], tool_choice=choice)
    assert reply.choices[0].message.tool_calls[0].function.parsed_arguments.city in ("Bonn", "Rome")


def response():
    reply = client.responses.create(model=MODEL, input="Write 7.", instructions="Be brief.", max_output_tokens=8)
    assert reply.output[0].type == "message"


def response_streamed():
    events = list(client.responses.create(model=MODEL, input="Write 7.", max_output_tokens=8, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")


def response_parsed():
    reply = client.responses.parse(model=MODEL, input="Yes or no?", text_format=Answer)
    assert reply.output_parsed.answer in ("yes", "no")


def response_called_and_answered():
    fields = {"model": MODEL, "tools": [FLAT], "parallel_tool_calls": False}
    first = client.responses.create(input="Weather?", tool_choice="required", **fields)
    call = next(item for item in first.output if item.type == "function_call")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    turns = [{"role": "user", "content": "Weather?"}, *first.output, output]
    client.responses.create(input=turns, max_output_tokens=8, **fields)


def embeddings():
    first, second = client.embeddings.create(model=MODEL, input=["a", "b"]).data
    assert len(first.embedding) == len(second.embedding) > 1


def unknown_model():
    raised = None
    try:
        client.chat.completions.create(model="no such model", messages=HI)
    except NotFoundError as error:
        raised = error
    assert raised is not None
    assert raised.code == "model_not_found"


report(
    [
        *(models, chat, chat_streamed, chat_streaming_helper, chat_async, reply_sent_back, completion, parsed),
        *(tools_offered, tool_called_and_answered, tool_called_streamed, tool_parsed, response, response_streamed),
        *(response_parsed, response_called_and_answered, embeddings, unknown_model),
    ]
)
