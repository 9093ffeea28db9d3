"""pydantic-ai: text, streams, typed output by tools, its default way, and by JSON schemas."""

from typing import Literal

from calls import MODEL, URL, report
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="unused")
model = OpenAIChatModel(MODEL, provider=provider)
SHORT = {"max_tokens": 8, "temperature": 0}


class Answer(BaseModel):
    """A yes or a no."""

    answer: Literal["yes", "no"]


def text():
    agent = Agent(model)
    first = agent.run_sync("Write 1994 as a Roman numeral.", model_settings=SHORT)
    agent.run_sync("Write 1987 as a Roman numeral.", message_history=first.all_messages(), model_settings=SHORT)


async def streamed():
    async with Agent(model).run_stream("Write 1994 as a Roman numeral.", model_settings=SHORT) as result:
        assert await result.get_output() is not None


def typed_by_tool():
    settings = {"parallel_tool_calls": False}
    assert Agent(model, output_type=Answer).run_sync("Yes?", model_settings=settings).output.answer in ("yes", "no")


def typed_by_schema():
    assert Agent(model, output_type=NativeOutput(Answer)).run_sync("Yes?").output.answer in ("yes", "no")


def responses():
    Agent(OpenAIResponsesModel(MODEL, provider=provider)).run_sync(
        "Write 1994 as a Roman numeral.", model_settings=SHORT
    )


report([text, streamed, typed_by_tool, typed_by_schema, responses])
