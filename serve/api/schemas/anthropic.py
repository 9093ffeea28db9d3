"""The bodies of POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients send them."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from serve.api.errors import invalid
from serve.api.schemas.body import Body, ListField
from serve.api.schemas.chat import MAX_MESSAGES, Hint
from serve.api.schemas.generation import MAX_STOP_CHARACTERS, MAX_STOPS
from serve.api.schemas.message import MAX_TOOLS, ToolName, without
from serve.api.schemas.translated import TranslatedRequest

_HINTS = frozenset(("cache_control", "eager_input_streaming", "defer_loading", "input_examples"))
_BLOCKS = {"type": "array", "items": {"type": "object", "properties": {"type": {"type": "string"}}}}
_CONTENT = {"anyOf": [{"type": "string"}, _BLOCKS]}
_SYSTEM_SCHEMA = _CONTENT
_MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "items": {
        "type": "object",
        "properties": {"role": {"enum": ["user", "assistant", "system"]}, "content": _CONTENT},
        "required": ["role", "content"],
    },
    "examples": [[{"role": "user", "content": "Write 1994 as a Roman numeral."}]],
}


def _text(content: Any, place: str) -> str:
    """The text of a string or of blocks of text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(place, f"{place}: must be a string or a list of blocks")
    lines = []
    for number, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            where = f"{place}.{number}"
            raise invalid(where, f'{where}: must be a block like {{"type": "text", "text": "…"}}; only text is read')
        lines.append(block["text"])
    return "\n".join(lines)


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value or len(value) > MAX_MESSAGES:
        raise invalid("messages", f"messages: must be a list of 1 to {MAX_MESSAGES} messages")
    messages: list[dict[str, Any]] = []
    for number, message in enumerate(value):
        place = f"messages.{number}"
        if not isinstance(message, dict):
            raise invalid(place, f"{place}: must be an object")
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise invalid(f"{place}.role", f"{place}.role: must be user or assistant")
        if role == "assistant" and isinstance(content, list):
            messages.append(_assistant(content, f"{place}.content"))
        elif role == "user" and isinstance(content, list):
            messages += _user(content, f"{place}.content")
        else:
            messages.append({"role": role, "content": _text(content, f"{place}.content")})
    return tuple(messages)


def _assistant(blocks: list[Any], place: str) -> dict[str, Any]:
    texts, calls, thoughts = [], [], []
    for number, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        where = f"{place}.{number}"
        if kind == "tool_use":
            function = {"name": _string(block, "name", where), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": _string(block, "id", where), "type": "function", "function": function})
        elif kind == "thinking":
            thoughts.append(_string(block, "thinking", where))
        elif kind != "redacted_thinking":
            texts.append(_text([block], place))
    message = {"content": "\n".join(texts), "tool_calls": calls, "reasoning_content": "\n".join(thoughts)}
    return {"role": "assistant", **{name: value for name, value in message.items() if value}}


def _user(blocks: list[Any], place: str) -> list[dict[str, Any]]:
    """Results of tools come first, as separate messages."""
    results, texts = [], []
    for number, block in enumerate(blocks):
        if isinstance(block, dict) and block.get("type") == "tool_result":
            where = f"{place}.{number}"
            content = _text(block.get("content") or "", f"{where}.content")
            results.append({"role": "tool", "tool_call_id": _string(block, "tool_use_id", where), "content": content})
        else:
            texts.append(_text([block], f"{place}"))
    return [*results, *([{"role": "user", "content": "\n".join(texts)}] if texts or not results else [])]


def _string(block: dict[str, Any], name: str, place: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise invalid(f"{place}.{name}", f"{place}.{name}: must be a string")
    return value


class AnthropicTool(Body):
    """A tool of the client's."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: Mapping[str, Any]
    strict: bool | None = None


class AnthropicChoice(Body):
    """Which tool the model calls, if any."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _named(self) -> "AnthropicChoice":
        if (self.type == "tool") != (self.name is not None):
            raise invalid("tool_choice.name", "tool_choice.name is for the type tool, which needs it")
        return self


class Thinking(Body):
    """Whether to think; goes to the chat template as `enable_thinking`."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=0)] | None = None
    display: Hint | None = None


class Metadata(Body):
    """`user_id` goes to the access log."""

    user_id: Hint | None = None


class AnthropicRequest(TranslatedRequest):
    """Anthropic's request for a message.

    `max_tokens` is what the context leaves, where it is left out. `service_tier` and `cache_control` have no effect.
    """

    names: ClassVar = {"stop": "stop_sequences", "max_completion_tokens": "max_tokens"}

    messages: Annotated[tuple[Any, ...], PlainValidator(_messages), WithJsonSchema(_MESSAGES_SCHEMA)]
    system: (
        Annotated[str, PlainValidator(lambda value: _text(value, "system")), WithJsonSchema(_SYSTEM_SCHEMA)] | None
    ) = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop_sequences: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)], ...],
        Field(fail_fast=True, max_length=MAX_STOPS),
        ListField,
    ] = ()
    tools: Annotated[
        tuple[Annotated[AnthropicTool, BeforeValidator(lambda value: without(_HINTS, value))], ...],
        Field(fail_fast=True, max_length=MAX_TOOLS),
        ListField,
    ] = ()
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    metadata: Metadata | None = None
    service_tier: Hint | None = None
    cache_control: Mapping[str, Any] | None = None

    def chat_fields(self) -> dict[str, Any]:
        """The chat's fields."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        fields: dict[str, Any] = {
            "messages": [*first, *self.messages],
            "max_tokens": self.max_tokens,
            "stop": list(self.stop_sequences) or None,
            "tools": [{"type": "function", "function": _function(tool)} for tool in self.tools],
            "user": None if self.metadata is None else self.metadata.user_id,
        }
        if self.tool_choice is not None:
            fields["tool_choice"] = self._choice(self.tool_choice)
            fields["parallel_tool_calls"] = not self.tool_choice.disable_parallel_tool_use
        if self.thinking is not None:
            thinks = {"enable_thinking": self.thinking.type != "disabled"}
            fields["chat_template_kwargs"] = {**thinks, **self.chat_template_kwargs}
        return fields

    @staticmethod
    def _choice(choice: AnthropicChoice) -> Any:
        if choice.type == "tool":
            return {"type": "function", "function": {"name": choice.name}}
        return "required" if choice.type == "any" else choice.type


def _function(tool: AnthropicTool) -> dict[str, Any]:
    about = tool.model_dump(include={"name", "description", "strict"}, exclude_none=True)
    return {**about, "parameters": tool.input_schema}
