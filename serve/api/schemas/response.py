"""The body of POST /v1/responses."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from serve.api.errors import invalid
from serve.api.schemas.body import Body, ListField
from serve.api.schemas.chat import MAX_MESSAGES, MAX_METADATA, Hint
from serve.api.schemas.generation import PlainEvents, Stops
from serve.api.schemas.response_input import INPUT_SCHEMA, input_messages
from serve.api.schemas.structure import JsonObjectFormat, TextFormat
from serve.api.schemas.tool import MAX_TOOLS, ToolName, choice_like
from serve.api.schemas.translated import TranslatedRequest
from serve.engine.request import MAX_LOGPROBS

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
