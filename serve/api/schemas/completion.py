"""The body of POST /v1/completions."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from serve.api.errors import invalid
from serve.api.schemas.prompt import PromptField
from serve.engine.request import MAX_LOGPROBS

MAX_STOPS = 4
DEFAULT_MAX_TOKENS = 16
_INT64 = 2**63


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise PydanticCustomError("stop", "must be a non-empty string or a list of such strings")
    if len(stops) > MAX_STOPS:
        raise PydanticCustomError("stop", f"may hold at most {MAX_STOPS} strings, not {len(stops)}")
    return tuple(stops)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _token_keys(value: Any) -> Any:
    """JSON's keys are strings: "50256" is the token 50256."""
    if not isinstance(value, dict):
        return value
    try:
        return {int(key): bias for key, bias in value.items()}
    except ValueError as error:
        raise PydanticCustomError("logit_bias", 'keys must be token ids, as in {{"42": -100}}') from error


TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Gate = Annotated[float, Field(gt=0, le=100)]


class StreamOptions(BaseModel):
    """How to stream. `continuous_usage_stats` puts the usage so far on every chunk, as vLLM does."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class CompletionRequest(BaseModel):
    """OpenAI's fields, those of vLLM's that the engine honours, and `experts`.

    `prompt` is any of OpenAI's four shapes. `experts` mixes: expert name → gate, the factor of its residual. `best_of`
    may only repeat `n`. `user` goes to the access log.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    prompt: PromptField
    experts: Mapping[str, Gate] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    best_of: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    logit_bias: Annotated[Mapping[TokenId, Bias], BeforeValidator(_token_keys)] = {}
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: Annotated[tuple[TokenId, ...], BeforeValidator(_tuple), Field(max_length=128)] = ()
    ignore_eos: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    priority: Annotated[int, Field(ge=-_INT64, lt=_INT64)] = 0
    request_id: Annotated[str, Field(pattern=r"^[!-~]{1,128}$")] | None = None

    @field_validator("experts")
    @classmethod
    def _some_expert(cls, experts: Mapping[str, float] | None) -> Mapping[str, float] | None:
        if experts is not None and not experts:
            raise ValueError('must name at least one expert; "model": "backbone" asks for none')
        return experts

    @model_validator(mode="after")
    def _agree(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != self.n:
            raise invalid("best_of", f"best_of must equal n, here {self.n}: picking from more is not supported")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", 'stream_options needs "stream": true')
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens", 'max_tokens must be at least 1, or 0 with "echo": true')
        most = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        if self.min_tokens > most:
            raise invalid("min_tokens", f"min_tokens must not be greater than max_tokens ({most})")
        return self
