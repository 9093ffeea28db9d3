"""The `input` of a request for a response: a text, or the items of a conversation as messages of a chat."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from serve.api.errors import invalid, shortened
from serve.api.schemas.body import Body, ListField
from serve.api.schemas.chat import MAX_MESSAGES, MAX_METADATA, Hint
from serve.api.schemas.generation import JsonObjectFormat, PlainEvents, Stops, TextFormat
from serve.api.schemas.message import MAX_TOOLS, ToolName, choice_like
from serve.api.schemas.translated import TranslatedRequest
from serve.engine.request import MAX_LOGPROBS

MAX_ITEMS = 4096
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ROLES = ("user", "assistant", "system", "developer")
INPUT_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "maxItems": MAX_ITEMS, "items": {"type": "object"}}],
    "examples": ["Write 1994 as a Roman numeral."],
}


def input_messages(value: Any) -> tuple[dict[str, Any], ...]:
    """The messages of a chat that the items say.

    Items of one turn of the assistant, its reasoning, its text and its calls, become one message.

    Raises:
        ApiError: 400, an item is malformed or of a kind that is not supported.
    """
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    if not isinstance(value, list) or not value or len(value) > MAX_ITEMS:
        raise invalid("input", f"input: must be a string or a list of 1 to {MAX_ITEMS} items")
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(value):
        _add(messages, item, f"input.{number}")
    return tuple(messages)


def _add(messages: list[dict[str, Any]], item: Any, place: str) -> None:
    if not isinstance(item, dict):
        raise invalid(place, f"{place}: must be an object")
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in _ROLES:
            raise invalid(f"{place}.role", f"{place}.role: must be one of {', '.join(_ROLES)}")
        content = _text(item.get("content"), f"{place}.content")
        if role == "assistant":
            turn = _turn(messages)
            turn["content"] = f"{turn['content']}\n{content}" if turn.get("content") else content
        else:
            messages.append({"role": role, "content": content})
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        if parts and (reasoning := _text(parts, f"{place}.content")):
            _turn(messages)["reasoning_content"] = reasoning
    elif kind == "function_call":
        function = {name: _string(item, name, place) for name in ("name", "arguments")}
        call = {"id": _string(item, "call_id", place), "type": "function", "function": function}
        _turn(messages).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _text(item.get("output"), f"{place}.output")
        messages.append({"role": "tool", "tool_call_id": _string(item, "call_id", place), "content": content})
    else:
        raise invalid(f"{place}.type", f"{place}.type: items of type {shortened(str(kind))!r} are not supported")


def _turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The message of the assistant's turn that is being read."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant"})
    return messages[-1]


def _string(item: dict[str, Any], name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid(f"{place}.{name}", f"{place}.{name}: must be a string")
    return value


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(place, f"{place}: must be a string or a list of parts")
    lines = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXTS or not isinstance(part.get("text"), str):
            where = f"{place}.{number}"
            raise invalid(
                where, f'{where}: must be a part like {{"type": "input_text", "text": "…"}}; only text is read'
            )
        lines.append(part["text"])
    return "\n".join(lines)


INCLUDES = ("message.output_text.logprobs", "reasoning.encrypted_content")


class SchemaFormat(Body):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[Mapping[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextConfig(Body):
    """What the text must be like."""

    foreign: ClassVar = {"verbosity": ("medium",)}

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(Body):
    """How much to think; a variable of the chat template, where it knows it."""

    effort: Hint | None = None
    summary: Hint | None = None
    generate_summary: Hint | None = None


class EventOptions(Body):
    """How to stream."""

    include_obfuscation: PlainEvents = False


class FlatTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool | None = None


class FlatNamedTool(Body):
    """The function that the model must call."""

    type: Literal["function"]
    name: ToolName


def _some(value: Any) -> Any:
    """An object without its nulls."""
    return {name: part for name, part in value.items() if part is not None} if isinstance(value, dict) else value


class ResponseRequest(TranslatedRequest):
    """OpenAI's request for a response, without state: `input` holds the whole conversation.

    `metadata`, `service_tier`, `prompt_cache_key` and `prompt_cache_retention` have no effect, nor has what `include`
    asks for and the model does not have. `user` and `safety_identifier` go to the access log.
    """

    foreign: ClassVar = {
        "background": (False,),
        "conversation": (),
        "max_tool_calls": (),
        "previous_response_id": (),
        "prompt": (),
        "truncation": ("disabled",),
        "context_management": ([],),
        "moderation": (),
        "prompt_cache_options": (),
        "access_programs": (),
        "background_options": (),
        "image": (),
    }
    names: ClassVar = {"messages": "input", "max_tokens": "max_output_tokens", "prompt": "input"}

    input: Annotated[tuple[Any, ...], PlainValidator(input_messages), WithJsonSchema(INPUT_SCHEMA)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: Annotated[TextConfig, BeforeValidator(_some)] | None = None
    reasoning: Annotated[ReasoningConfig, BeforeValidator(_some)] | None = None
    tools: Annotated[
        tuple[Annotated[FlatTool, BeforeValidator(_some)], ...], Field(fail_fast=True, max_length=MAX_TOOLS), ListField
    ] = ()
    tool_choice: (
        Annotated[Literal["none", "auto", "required"] | FlatNamedTool, choice_like('{"type": "function", "name": "…"}')]
        | None
    ) = None
    parallel_tool_calls: bool = True
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: Annotated[tuple[Literal[INCLUDES], ...], Field(fail_fast=True, max_length=16), ListField] = ()  # type: ignore[valid-type]
    store: bool = False
    stop: Stops = ()
    stream_options: EventOptions | None = None
    metadata: Annotated[Mapping[Hint, Hint], Field(max_length=MAX_METADATA)] | None = None
    service_tier: Hint | None = None
    prompt_cache_key: Hint | None = None
    prompt_cache_retention: Hint | None = None
    safety_identifier: Hint | None = None
    user: Hint | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text's tokens come with their log-probabilities."""
        return "message.output_text.logprobs" in self.include or bool(self.top_logprobs)

    @model_validator(mode="after")
    def _stateless(self) -> "ResponseRequest":
        if self.store:
            raise invalid("store", "store: responses are not stored here; leave it out, or send false")
        if len(self.input) > MAX_MESSAGES:
            raise invalid("input", f"input may hold at most {MAX_MESSAGES} messages")
        return self

    def chat_fields(self) -> dict[str, Any]:
        """The chat's fields."""
        first = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        choice = self.tool_choice
        named = {"type": "function", "function": {"name": choice.name}} if isinstance(choice, FlatNamedTool) else choice
        return {
            "messages": [*first, *self.input],
            "max_tokens": self.max_output_tokens,
            "response_format": self._response_format(),
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
            "tools": [{"type": "function", "function": _function(tool)} for tool in self.tools],
            "tool_choice": named,
            "parallel_tool_calls": self.parallel_tool_calls,
            "logprobs": self.wants_logprobs,
            "top_logprobs": self.top_logprobs if self.wants_logprobs else None,
            "stop": list(self.stop) or None,
            "safety_identifier": self.safety_identifier,
            "user": self.user,
        }

    def _response_format(self) -> dict[str, Any] | None:
        asked = None if self.text is None else self.text.format
        if asked is None:
            return None
        fields = asked.model_dump(by_alias=True, exclude_none=True)
        kind = fields.pop("type")
        return {"type": kind, "json_schema": fields} if kind == "json_schema" else {"type": kind}


def _function(tool: FlatTool) -> dict[str, Any]:
    return tool.model_dump(exclude={"type"}, exclude_none=True)
