"""instructor: objects from tools, its default way, and from JSON schemas; streamed parts of objects."""

from typing import Literal

import instructor
from calls import HI, MODEL, URL, report
from openai import OpenAI
from pydantic import BaseModel, ConfigDict

client = OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0)
FIELDS = {"model": MODEL, "messages": HI, "max_retries": 0, "temperature": 0}


class Answer(BaseModel):
    """A yes or a no, and nothing else: a small model may never end an open object."""

    model_config = ConfigDict(extra="forbid")

    answer: Literal["yes", "no"]


def made(mode):
    return instructor.from_openai(client, mode=mode)


def by_tools():
    reply = made(instructor.Mode.TOOLS).chat.completions.create(response_model=Answer, **FIELDS)
    assert reply.answer in ("yes", "no")


def by_json_schema():
    reply = made(instructor.Mode.JSON_SCHEMA).chat.completions.create(response_model=Answer, **FIELDS)
    assert reply.answer in ("yes", "no")


def partial():
    *_, last = made(instructor.Mode.TOOLS).chat.completions.create_partial(response_model=Answer, **FIELDS)
    assert last.answer in ("yes", "no")


report([by_tools, by_json_schema, partial])
