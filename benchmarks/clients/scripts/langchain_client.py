"""langchain-openai: chats, streams, structured output, tools, responses, completions and embeddings."""

from typing import Literal

from calls import MODEL, URL, report
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

FIELDS = {"base_url": f"{URL}/v1", "api_key": "unused", "model": MODEL, "max_retries": 0}
chat = ChatOpenAI(**FIELDS, max_tokens=8)
long = ChatOpenAI(**FIELDS)


class Answer(BaseModel):
    """A yes or a no."""

    answer: Literal["yes", "no"]


@tool
def weather(city: Literal["Bonn", "Rome"]) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def invoke():
    assert chat.invoke("Write 7.").usage_metadata["output_tokens"] > 0


def stream():
    assert list(chat.stream("Write 7."))


async def asynchronous():
    await chat.ainvoke("Write 7.")
    assert [chunk async for chunk in chat.astream("Write 7.")]


def batch():
    assert len(chat.batch(["7", "8"])) == 2


def structured_by_schema():
    assert long.with_structured_output(Answer).invoke("Yes?").answer in ("yes", "no")


def structured_by_function():
    assert long.with_structured_output(Answer, method="function_calling").invoke("Yes?").answer in ("yes", "no")


def bind_tools():
    chat.bind_tools([weather]).invoke("Weather?")


def tool_called_and_answered():
    asked = HumanMessage("Weather?")
    reply = long.bind_tools([weather], tool_choice="any", parallel_tool_calls=False).invoke([asked])
    (call,) = reply.tool_calls
    answer = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    chat.bind_tools([weather]).invoke([asked, reply, answer])


def responses():
    ChatOpenAI(**FIELDS, use_responses_api=True, max_tokens=8).invoke("Write 7.")


def completions():
    assert OpenAI(**FIELDS, max_tokens=8).invoke("7") is not None


def embeddings():
    settings = {**FIELDS, "check_embedding_ctx_length": False}
    assert len(OpenAIEmbeddings(**settings).embed_documents(["a", "b"])) == 2


report(
    [
        *(invoke, stream, asynchronous, batch, structured_by_schema, structured_by_function, bind_tools),
        *(tool_called_and_answered, responses, completions, embeddings),
    ]
)
