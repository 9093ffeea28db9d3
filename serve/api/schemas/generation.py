"""The fields that ask for text of a given structure: OpenAI's `response_format` and vLLM's `structured_outputs`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from serve.api.errors import invalid, shortened
from serve.api.schemas.body import MAX_NAME, Body, ListField, ModelName

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


MAX_STOPS = 64
MAX_STOP_CHARACTERS = 256
"""Limits of stop strings: after every token, each end of the text that may begin a stop string is searched."""

MAX_MIXED = 64
MAX_ROUTED = 8
MAX_BIASES = 131_072
MAX_BAD_WORDS = 1024
AS_MANY_AS_FIT = -1
"""`max_tokens`, as llama.cpp has it."""

_INT64 = 2**63
_MOST_DIGITS = 18  # of a token id
_MOST_BIAS = 100


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise PydanticCustomError("stop", "must be a non-empty string or a list of such strings")
    if len(stops) > MAX_STOPS:
        raise PydanticCustomError("stop", f"may hold at most {MAX_STOPS} strings, not {len(stops)}")
    if (longest := max(map(len, stops), default=0)) > MAX_STOP_CHARACTERS:
        raise PydanticCustomError("stop", f"holds a string of {longest} characters; {MAX_STOP_CHARACTERS} are allowed")
    return tuple(stops)


def _biases(value: Any) -> dict[int, float]:
    """JSON's keys are strings: "50256" is the token 50256. Stops at the first mistake, of which there may be many."""
    if not isinstance(value, dict):
        raise PydanticCustomError("logit_bias", "must be an object")
    if len(value) > MAX_BIASES:
        raise PydanticCustomError("logit_bias", f"may hold at most {MAX_BIASES} items")
    biases = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= _MOST_DIGITS):
            message = (
                f'logit_bias: the key {shortened(key)!r} is not a token id; keys are token ids, as in {{"42": -100}}'
            )
            raise invalid("logit_bias", message)
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise invalid(f"logit_bias.{key}", f"logit_bias.{key}: must be a number")
        if not -_MOST_BIAS <= bias <= _MOST_BIAS:
            raise invalid(f"logit_bias.{key}", f"logit_bias.{key}: must be between -{_MOST_BIAS} and {_MOST_BIAS}")
        biases[int(key)] = float(bias)
    return biases


def _mixed(value: Any) -> Any:
    if isinstance(value, dict):
        if not value:
            raise PydanticCustomError("experts", 'must name at least one expert; "model": "backbone" asks for none')
        if len(value) > MAX_MIXED:
            raise PydanticCustomError("experts", f"may hold at most {MAX_MIXED} items")
        if max(map(len, value)) > MAX_NAME:
            raise PydanticCustomError("experts", f"holds a name of more than {MAX_NAME} characters")
    return value


_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}
_STOP_SCHEMA = {"anyOf": [_STOP, {"type": "array", "maxItems": MAX_STOPS, "items": _STOP}]}
Stops = Annotated[tuple[str, ...], BeforeValidator(_stops), WithJsonSchema(_STOP_SCHEMA)]
_BIAS_SCHEMA = {
    "type": "object",
    "maxProperties": MAX_BIASES,
    "propertyNames": {"pattern": f"^[0-9]{{1,{_MOST_DIGITS}}}$"},
    "additionalProperties": {"type": "number", "minimum": -_MOST_BIAS, "maximum": _MOST_BIAS},
}

Int64 = Annotated[int, Field(ge=-_INT64, lt=_INT64)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = tuple[TokenId, ...]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Gate = Annotated[float, Field(gt=0, le=100)]
Experts = Annotated[Mapping[str, Gate], BeforeValidator(_mixed), Field(min_length=1, max_length=MAX_MIXED)]
Word = Annotated[str, Field(min_length=1, max_length=256)]
RequestId = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]


def _plain(value: bool) -> bool:
    if value:
        raise ValueError("is not supported; leave it out")
    return value


PlainEvents = Annotated[bool, Field(json_schema_extra={"const": False}), AfterValidator(_plain)]
"""OpenAI's obfuscation of the sizes of events, which there is none of."""


class StreamOptions(Body):
    """How to stream. `continuous_usage_stats` puts the usage so far on every chunk, as vLLM does."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: PlainEvents = False


class GenerationRequest(Body):
    """OpenAI's fields, those of vLLM's that the engine honours, and `experts`.

    Without `model`, the router chooses. `experts` mixes: expert name → gate, the factor of its residual.
    `router_top_k` lets the router mix up to this number of experts if their probabilities are close.
    `max_tokens` of -1 is as many as fit. `user` goes to the access log.
    """

    model: Annotated[ModelName | None, Field(examples=["auto"])] = None
    experts: Experts | None = None
    router_top_k: Annotated[int, Field(ge=1, le=MAX_ROUTED)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    max_tokens: Annotated[int, Field(ge=-1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    logit_bias: Annotated[Mapping[int, float], PlainValidator(_biases), WithJsonSchema(_BIAS_SCHEMA)] = {}
    allowed_token_ids: Annotated[TokenIds, Field(fail_fast=True, min_length=1), ListField] | None = None
    bad_words: Annotated[tuple[Word, ...], Field(fail_fast=True, max_length=MAX_BAD_WORDS), ListField] = ()
    seed: Int64 | None = None
    stop: Stops = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: Annotated[TokenIds, Field(fail_fast=True, max_length=128), ListField] = ()
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    add_special_tokens: bool | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    priority: Int64 = 0
    request_id: RequestId | None = None

    @property
    def candidates(self) -> int:
        """Continuations generated of each prompt."""
        return self.n

    @property
    def end_user(self) -> str | None:
        """Who asks, for the log."""
        return self.user

    @property
    def wanted_tokens(self) -> int | None:
        """Most tokens to generate, None if the request does not say, or asks for as many as fit."""
        return None if self.max_tokens == AS_MANY_AS_FIT else self.max_tokens

    @property
    def default_tokens(self) -> int | None:
        """The number of tokens if the request does not give it; None: as many as fit."""
        return None

    @property
    def echoes(self) -> bool:
        """Whether the text begins with the prompt."""
        return False

    @property
    def top_tokens(self) -> int | None:
        """How many alternatives of each token are reported; None: no log-probabilities are reported."""
        return None

    @model_validator(mode="after")
    def _streams(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", 'stream_options needs "stream": true')
        return self

    @model_validator(mode="after")
    def _structure(self) -> "GenerationRequest":
        plain = self.response_format is None or self.response_format.type == "text"
        if self.structured_outputs is None and plain:
            return self
        if self.structured_outputs is not None and not plain:
            raise invalid("structured_outputs", "structured_outputs and response_format both ask for a structure")
        # Each of these could leave no token that the structure allows.
        for name in ("min_tokens", "ignore_eos", "allowed_token_ids", "bad_words"):
            if getattr(self, name):
                asking = "structured_outputs" if plain else "response_format"
                message = f"{name} cannot be combined with {asking}, which decides what may come and where it ends"
                raise invalid(name, message)
        return self
