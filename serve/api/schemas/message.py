"""A chat's messages: text for the model, and what it answered before."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from serve.api.schemas.body import Body

_PARTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
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
        if kind != "text" or set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise PydanticCustomError("content", 'holds a part that is not like {"type": "text", "text": "…"}')
        lines.append(part["text"])
    return "\n".join(lines)


Content = Annotated[str, BeforeValidator(_text), WithJsonSchema({"anyOf": [{"type": "string"}, _PARTS]})]


class Message(Body):
    """One message; the fields that a reply's message may carry beside these must be null or empty."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": {"enum": [None, []]}})

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        cls.check_field_count(value)
        if not isinstance(value, dict):
            return value
        unset = {name for name in value if name not in cls.model_fields and value[name] in (None, [])}
        calls = value.get("tool_calls") or value.get("function_call")
        if calls or value.get("role") in ("tool", "function"):  # not a set: the role may be anything that JSON has
            raise PydanticCustomError("tools", "tools and functions are not supported by this server")
        return {name: field for name, field in value.items() if name not in unset and field is not None}

    def as_template_input(self) -> dict[str, str]:
        """What the chat template sees."""
        return {"role": self.role, "content": self.content, **({"name": self.name} if self.name else {})}
