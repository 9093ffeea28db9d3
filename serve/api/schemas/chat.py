"""The body of POST /v1/chat/completions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from serve.api.errors import invalid, shortened
from serve.api.schemas.body import FOREIGN_CHAT, ListField
from serve.api.schemas.generation import AS_MANY_AS_FIT, GenerationRequest
from serve.api.schemas.message import Message, NamedTool, Tool, ToolChoice, Tools
from serve.engine.request import MAX_LOGPROBS

MAX_MESSAGES = 4096
MAX_TEMPLATE_VARIABLES = 64
MAX_METADATA = 64

_RESERVED = {
    *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
    *("conversations", "conversation", "chat_template", "return_assistant_tokens_mask"),
}

Messages = Annotated[
    tuple[Message, ...],
    Field(
        fail_fast=True,
        min_length=1,
        max_length=MAX_MESSAGES,
        examples=[[{"role": "user", "content": "Write 1994 as a Roman numeral."}]],
    ),
    ListField,
]


def _variables(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) > MAX_TEMPLATE_VARIABLES:
            raise PydanticCustomError("variables", f"may hold at most {MAX_TEMPLATE_VARIABLES} items")
        for name in value:
            if name in _RESERVED or name.endswith("_token"):
                raise PydanticCustomError("variables", "may not set {name}", {"name": shortened(name)})
    return value


Hint = Annotated[str, Field(max_length=512)]

VariablesField = BeforeValidator(_variables)
"""Marks the variables of the chat template: some, and none of those that the server sets."""


class ChatRequest(GenerationRequest):
    """OpenAI's chat, of text.

    `max_completion_tokens` is the newer name of `max_tokens`. `chat_template_kwargs` are variables of the model's chat
    template, `add_generation_prompt` and `continue_final_message` say how it ends, as in vLLM. `safety_identifier` is
    OpenAI's newer name of `user`. `reasoning_effort` is a variable of the chat template, too; `metadata`,
    `service_tier`, `prompt_cache_key` and `prompt_cache_retention` are hints to services, and have no effect.
    `tools` are those that the model may call, as `tool_choice` says; with `parallel_tool_calls` false, once.
    """

    foreign: ClassVar = FOREIGN_CHAT

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=-1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Annotated[Mapping[str, Any], Field(max_length=MAX_TEMPLATE_VARIABLES), VariablesField] = {}
    reasoning_effort: Hint | None = None
    metadata: Annotated[Mapping[Hint, Hint], Field(max_length=MAX_METADATA)] | None = None
    service_tier: Hint | None = None
    prompt_cache_key: Hint | None = None
    prompt_cache_retention: Hint | None = None
    tools: Tools = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True

    @property
    def offered_tools(self) -> tuple[Tool, ...]:
        """The tools that the model may call."""
        if self.tool_choice == "none":
            return ()
        if not isinstance(self.tool_choice, NamedTool):
            return self.tools
        return tuple(tool for tool in self.tools if tool.function.name == self.tool_choice.function.name)

    @property
    def must_call(self) -> bool:
        """Whether the reply must be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def strict_tools(self) -> bool:
        """Whether calls that the model makes by itself are to be kept to a tool's schema."""
        return not self.must_call and any(tool.function.strict for tool in self.offered_tools)

    @property
    def template_variables(self) -> Mapping[str, Any]:
        """`chat_template_kwargs`, and `reasoning_effort` for templates that know it."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {**effort, **self.chat_template_kwargs}

    @property
    def end_user(self) -> str | None:
        """`safety_identifier`, or `user`."""
        return self.safety_identifier or self.user

    @property
    def wanted_tokens(self) -> int | None:
        """`max_completion_tokens`, or `max_tokens`."""
        wanted = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return None if wanted == AS_MANY_AS_FIT else wanted

    @property
    def top_tokens(self) -> int | None:
        """`top_logprobs`, if `logprobs` is true; otherwise None."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def user_texts(self) -> tuple[str, ...]:
        """What the router reads: the messages of the user."""
        return tuple(message.content for message in self.messages if message.role == "user")

    @model_validator(mode="after")
    def _tools_agree(self) -> "ChatRequest":
        if self.must_call and not self.tools:
            raise invalid("tool_choice", "tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and not self.offered_tools:
            name = shortened(self.tool_choice.function.name)
            raise invalid("tool_choice", f"tool_choice names {name!r}, which is not one of the tools")
        if self.must_call:
            for name in ("min_tokens", "ignore_eos", "allowed_token_ids", "bad_words", "structured_outputs"):
                if getattr(self, name):
                    message = f"{name} cannot be combined with a tool_choice that forces a call"
                    raise invalid(name, message)
        return self

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        for name in ("max_tokens", "max_completion_tokens"):
            if getattr(self, name) == 0:
                raise invalid(name, f"{name} must be at least 1, or -1 for as many as fit")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("max_tokens", "max_tokens is the older name of max_completion_tokens, and they differ")
        if self.wanted_tokens is not None and self.min_tokens > self.wanted_tokens:
            message = f"min_tokens must not be greater than max_completion_tokens ({self.wanted_tokens})"
            raise invalid("min_tokens", message)
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", 'top_logprobs needs "logprobs": true')
        if self.continue_final_message:
            if self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
                message = "continue_final_message and add_generation_prompt are mutually exclusive"
                raise invalid("continue_final_message", message)
            if self.messages[-1].role != "assistant":
                raise invalid("continue_final_message", "continue_final_message needs a last message of the assistant")
        return self
