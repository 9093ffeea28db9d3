"""A chat's messages, the tools that it offers, and calls of tools in it."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, LiteralString

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from serve.api.schemas.body import Body, ListField

MAX_TOOLS = 256
MAX_CALLS = 1024

ToolName = Annotated[str, Field(min_length=1, max_length=256)]


def without(keys: frozenset[str], value: Any) -> Any:
    """An object without some keys, and without those that are null; any other value is unchanged."""
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
        """The call for the chat template, with the arguments as an object if they are one."""
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


HINTS = frozenset(("cache_control", "prompt_cache_breakpoint"))
"""Keys of a part, a message or a tool that say what a server should keep cached. This one caches every prefix."""

REPLY_KEYS = frozenset(
    (
        *("annotations", "audio", "id", "index", "parsed", "provider_specific_fields", "reasoning_details", "refusal"),
        *("status", "thinking_blocks"),
    )
)
"""Keys that clients leave in a reply's message when they send it back."""

_PARTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}, **{key: {} for key in sorted(HINTS)}},
        "required": ["type", "text"],
        "additionalProperties": False,
    },
}


def _text(value: Any) -> Any:
    """Text parts as one text, a line each, as vLLM has it."""
    if not isinstance(value, list):
        return value
    if not value:
        raise PydanticCustomError("content", "must be a string or a list of text parts, and not empty")
    lines = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind != "text":
            raise PydanticCustomError(
                "content", "holds a part of type {kind}; only text is supported", {"kind": kind[:40]}
            )
        if kind != "text" or set(part) - HINTS != {"type", "text"} or not isinstance(part["text"], str):
            raise PydanticCustomError("content", 'holds a part that is not like {"type": "text", "text": "…"}')
        lines.append(part["text"])
    return "\n".join(lines)


Content = Annotated[str, BeforeValidator(_text), WithJsonSchema({"anyOf": [{"type": "string"}, _PARTS]})]


def _with_ignored(schema: dict[str, Any]) -> None:
    """What a message may carry beside its fields, and what may be null or missing in one of the assistant."""
    fields = schema["properties"] | {key: {} for key in sorted(HINTS | REPLY_KEYS | {"reasoning"})}
    for name in ("content", "tool_calls"):
        fields[name] = {"anyOf": [fields[name], {"type": "null"}]}
    schema["properties"], schema["required"] = fields, ["role"]
    schema["additionalProperties"] = {"enum": [None, []]}


class Message(Body):
    """One message; `tool` is a tool's answer, to the call of the assistant that `tool_call_id` names.

    A message of the assistant may come back as a reply had it: `content` null is an empty text, `reasoning_content`
    (or `reasoning`) goes to the chat template, which may use it, and the other keys of replies are left out. All other
    unknown fields must be null or empty.
    """

    model_config = ConfigDict(json_schema_extra=_with_ignored)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    reasoning_content: str | None = None
    tool_calls: Calls = ()
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_replied(cls, value: Any) -> Any:
        cls.check_field_count(value)
        if not isinstance(value, dict):
            return value
        if value.get("function_call") or value.get("role") == "function":
            raise PydanticCustomError("tools", "functions are not supported by this server; use tools")
        ignored = HINTS
        if value.get("role") == "assistant":
            ignored |= REPLY_KEYS
            given = value.get("reasoning_content") or value.get("reasoning")
            content = "" if value.get("content") is None else value["content"]
            value = {**value, "content": content, "reasoning_content": given, "reasoning": None}
        unset = {name for name in value if name not in cls.model_fields and value[name] in (None, [])} | ignored
        return {name: field for name, field in value.items() if name not in unset and field is not None}

    @model_validator(mode="after")
    def _roles(self) -> "Message":
        for name, role in (("tool_calls", "assistant"), ("reasoning_content", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, name) and self.role != role:
                raise PydanticCustomError(
                    "role", "{name} is for messages of the role {role}", {"name": name, "role": role}
                )
        return self

    def as_template_input(self) -> dict[str, Any]:
        """What the chat template sees."""
        named = {
            "name": self.name,
            "reasoning_content": self.reasoning_content,
            "tool_calls": [call.as_template_input() for call in self.tool_calls],
            "tool_call_id": self.tool_call_id,
        }
        return {"role": self.role, "content": self.content, **{name: value for name, value in named.items() if value}}
