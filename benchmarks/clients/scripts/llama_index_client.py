"""llama-index: completions, chats, streams, and calls of tools."""

from typing import Literal

from calls import MODEL, URL, report
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

FIELDS = {"model": MODEL, "api_base": f"{URL}/v1", "api_key": "unused", "max_retries": 0, "context_window": 256}
chatting = OpenAILike(**FIELDS, is_chat_model=True, max_tokens=8)
calling = OpenAILike(**FIELDS, is_chat_model=True, is_function_calling_model=True, max_tokens=100)
completing = OpenAILike(**FIELDS, max_tokens=8)
HELLO = [ChatMessage(role="user", content="Write 7.")]


class Answer(BaseModel):
    """A yes or a no."""

    answer: Literal["yes", "no"]


def weather(city: Literal["Bonn", "Rome"]) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def complete():
    completing.complete("7")
    assert list(completing.stream_complete("7"))


def chat():
    reply = chatting.chat(HELLO)
    chatting.chat([*HELLO, reply.message, *HELLO])
    assert list(chatting.stream_chat(HELLO))


async def asynchronous():
    await chatting.achat(HELLO)


def tools():
    tool = FunctionTool.from_defaults(weather)
    reply = calling.chat_with_tools([tool], user_msg="Weather?", tool_required=True)
    (call,) = calling.get_tool_calls_from_response(reply)[:1]
    assert call.tool_name == "weather"


def structured():
    assert calling.structured_predict(Answer, PromptTemplate("Yes?")).answer in ("yes", "no")


report([complete, chat, asynchronous, tools, structured])
