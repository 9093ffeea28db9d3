"""The bodies of POST /tokenize and /detokenize, as vLLM has them."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from serve.api.errors import invalid
from serve.api.schemas.body import Body, ListField, ModelName
from serve.api.schemas.chat import MAX_TEMPLATE_VARIABLES, Messages, VariablesField
from serve.api.schemas.generation import TokenIds
from serve.api.schemas.tool import Tool, Tools


class TokenizeRequest(Body):
    """Exactly one of `prompt` and `messages`.

    `add_special_tokens` is true for a prompt and false for messages, whose template writes them, unless given.
    `tools` go to the template, as a chat's do. `return_token_strs` asks for each token's text.
    """

    model: ModelName | None = None
    prompt: Annotated[str, Field(examples=["hello"])] | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Annotated[Mapping[str, Any], Field(max_length=MAX_TEMPLATE_VARIABLES), VariablesField] = {}
    tools: Tools = ()
    return_token_strs: bool = False

    @property
    def template_variables(self) -> Mapping[str, Any]:
        """`chat_template_kwargs`."""
        return self.chat_template_kwargs

    @property
    def offered_tools(self) -> tuple[Tool, ...]:
        """`tools`."""
        return self.tools

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise invalid("prompt", "exactly one of prompt and messages is required")
        if self.messages is None:
            for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"):
                if name in self.model_fields_set:
                    raise invalid(name, f"{name} is only valid with messages")
        elif self.continue_final_message and self.messages[-1].role != "assistant":
            raise invalid("continue_final_message", "continue_final_message needs a last message of the assistant")
        return self


class DetokenizeRequest(Body):
    """Token ids to be read as text."""

    model: ModelName | None = None
    tokens: Annotated[TokenIds, Field(fail_fast=True, examples=[[76, 73, 80, 80, 83]]), ListField]
