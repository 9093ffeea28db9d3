"""The bodies of requests that generate nothing: embeddings, score, classify, route, tokenize and detokenize."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from serve.api.errors import invalid
from serve.api.schemas.body import Body, ListField, ModelName
from serve.api.schemas.chat import MAX_TEMPLATE_VARIABLES, Messages, VariablesField
from serve.api.schemas.completion import PromptField, TextPromptField
from serve.api.schemas.generation import MAX_ROUTED, Experts, Int64, RequestId, TokenIds
from serve.api.schemas.message import Tool, Tools

MAX_LABELS = 256


class PromptRequest(Body):
    """What the requests have in common that generate nothing."""

    model: Annotated[ModelName | None, Field(examples=["backbone"])] = None
    experts: Experts | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    priority: Int64 = 0
    request_id: RequestId | None = None
    add_special_tokens: bool = True


class PooledRequest(PromptRequest):
    """How hidden states become a vector."""

    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True


class EmbeddingRequest(PooledRequest):
    """OpenAI's request for embeddings; `pooling` and `normalize` say how the hidden states become one vector."""

    foreign: ClassVar = {"dimensions": (), "truncate_prompt_tokens": ()}

    input: PromptField
    encoding_format: Literal["float", "base64"] = "float"


class ScoreRequest(PooledRequest):
    """How alike texts are: one with several, or pair by pair."""

    text_1: TextPromptField
    text_2: TextPromptField

    @model_validator(mode="after")
    def _pairs(self) -> "ScoreRequest":
        if len(self.text_1) not in (1, len(self.text_2)):
            raise invalid("text_2", "text_2 must hold as many texts as text_1, or text_1 must be one text")
        return self


class ClassifyRequest(PromptRequest):
    """Which of the labels continues the prompt most likely. Exactly one of `input` and `messages`.

    `normalization` "mean" divides a label's log-probability by its number of tokens.
    """

    input: TextPromptField | None = None
    messages: Messages | None = None
    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...],
        Field(fail_fast=True, min_length=2, max_length=MAX_LABELS, examples=[[" yes", " no"]]),
        ListField,
    ]
    normalization: Literal["sum", "mean"] = "sum"

    @model_validator(mode="after")
    def _one(self) -> "ClassifyRequest":
        if (self.input is None) == (self.messages is None):
            raise invalid("input", "exactly one of input and messages is required")
        if len(set(self.labels)) < len(self.labels):
            raise invalid("labels", "labels holds a label twice")
        return self


class RouteRequest(Body):
    """Ask for decisions without generating.

    `model` may be left out, and where it is given it must be a name that routes; `top` limits the scores shown.
    `router_top_k` is that of a completion.
    """

    prompt: TextPromptField
    model: ModelName | None = None
    top: Annotated[int, Field(ge=1)] | None = None
    router_top_k: Annotated[int, Field(ge=1, le=MAX_ROUTED)] | None = None


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
