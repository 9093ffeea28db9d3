"""The fields that offer tools to the model, and calls of tools in a conversation."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, LiteralString

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from serve.api.schemas.body import Body, ListField

MAX_TOOLS = 256
MAX_CALLS = 1024

ToolName = Annotated[str, Field(min_length=1, max_length=256)]


def without(keys: frozenset[str], value: Any) -> Any:
    """An object without some keys, and without those that are null; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {name: part for name, part in value.items() if name not in keys and part is not None}


def _hints(value: Any) -> Any:
    return without(frozenset(("cache_control", "prompt_cache_breakpoint")), value)


class Function(Body):
    """A function that the model may call. `strict` keeps its arguments to `parameters`, with closed objects."""

    name: ToolName
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """OpenAI's tool; functions only."""

    type: Literal["function"]
    function: Annotated[Function, BeforeValidator(_hints)]

    def as_template_input(self) -> dict[str, Any]:
        """What the chat template sees."""
        function = self.function
        about = {} if function.description is None else {"description": function.description}
        parameters = dict(function.parameters or {}) or {"type": "object", "properties": {}}
        return {"type": "function", "function": {"name": function.name, **about, "parameters": parameters}}


class NamedFunction(Body):
    """A function's name."""

    name: ToolName


class NamedTool(Body):
    """The tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


def choice_like(named: LiteralString) -> BeforeValidator:
    """Check a `tool_choice` before its fields are read.

    Args:
        named: an example of an object that names a function, for the error.
    """

    def check(value: Any) -> Any:
        if not isinstance(value, dict) and value not in ("none", "auto", "required"):
            raise PydanticCustomError("tool_choice", 'must be "none", "auto", "required", or like ' + named)
        return value

    return BeforeValidator(check)


Tools = Annotated[
    tuple[Annotated[Tool, BeforeValidator(_hints)], ...], Field(fail_fast=True, max_length=MAX_TOOLS), ListField
]
ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool,
    choice_like('{"type": "function", "function": {"name": "…"}}'),
]


class CalledFunction(Body):
    """What a call says: the function's name, and its arguments as a text in JSON."""

    name: ToolName
    arguments: str = ""


class Call(Body):
    """A call in an earlier message of the assistant. Other keys of replies are left out."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": {}})

    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] | None = None
    function: CalledFunction

    def as_template_input(self) -> dict[str, Any]:
        """What the chat template sees: the arguments as an object, where they are one."""
        arguments: Any = self.function.arguments
        try:
            found = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            found = None  # the model that wrote it reads it again
        name = {} if self.id is None else {"id": self.id}
        called = {"name": self.function.name, "arguments": found if isinstance(found, dict) else arguments}
        return {**name, "type": "function", "function": called}


def _known(value: Any) -> Any:
    return (
        {name: value[name] for name in ("id", "type", "function") if value.get(name) is not None}
        if isinstance(value, dict)
        else value
    )


Calls = Annotated[
    tuple[Annotated[Call, BeforeValidator(_known)], ...], Field(fail_fast=True, max_length=MAX_CALLS), ListField
]
