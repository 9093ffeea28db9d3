"""A chat's messages: text for the model, and what it answered before."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from serve.api.schemas.body import Body
from serve.api.schemas.tool import Calls

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
