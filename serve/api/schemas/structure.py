"""The fields that ask for text of a given structure: OpenAI's `response_format` and vLLM's `structured_outputs`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from serve.api.errors import invalid
from serve.api.schemas.body import Body, ListField

Strings = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], Field(fail_fast=True, min_length=1, max_length=1024), ListField
]


class NamedSchema(Body):
    """A JSON schema as OpenAI sends it. It is always enforced; `strict: true` also closes its objects."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[Mapping[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Some JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Body):
    """vLLM's way to ask: exactly one of a JSON schema, a regular expression, a list of choices, or any JSON object."""

    json_: Annotated[Mapping[str, Any] | None, Field(alias="json")] = None
    regex: Annotated[str, Field(min_length=1, max_length=65_536)] | None = None
    choice: Strings | None = None
    json_object: bool | None = None

    @field_validator("json_object")
    @classmethod
    def _true(cls, value: bool | None) -> bool | None:
        return value or None

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputs":
        given = [field for field in (self.json_, self.regex, self.choice, self.json_object) if field is not None]
        if len(given) != 1:
            raise invalid(
                "structured_outputs", "structured_outputs takes exactly one of json, regex, choice, json_object"
            )
        return self
