"""The bodies of POST /v1/embeddings, /v1/score and /v1/classify."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from serve.api.errors import invalid
from serve.api.schemas.body import Body, ListField, ModelName
from serve.api.schemas.chat import Messages
from serve.api.schemas.generation import Experts, Int64, RequestId
from serve.api.schemas.prompt import PromptField, TextPromptField

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
