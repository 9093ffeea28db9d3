"""The body of POST /v1/completions, and `prompt`: a text, several texts, one list of token ids or several."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from serve.api.errors import invalid
from serve.api.schemas.body import FOREIGN_COMPLETION
from serve.api.schemas.generation import AS_MANY_AS_FIT, GenerationRequest
from serve.engine.request import MAX_LOGPROBS

_SHAPES = "a string, a list of strings, a list of token ids, or a list of lists of token ids"

MAX_PROMPTS = 16_384
"""Lists that a body may hold; `--max-choices` bounds how many prompts are answered."""

Prompts = tuple[str | tuple[int, ...], ...]


def _prompts(value: Any) -> Prompts:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if _is_ids(value):
            return (tuple(value),)
        _check_count(value)
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if all(isinstance(item, list) and item and _is_ids(item) for item in value):
            return tuple(tuple(item) for item in value)
    raise PydanticCustomError("prompt", f"must be {_SHAPES}, and not empty")


def _check_count(prompts: list[Any]) -> None:
    if len(prompts) > MAX_PROMPTS:
        raise PydanticCustomError("prompt", f"holds {len(prompts)} items; at most {MAX_PROMPTS} prompts are read")


def _is_ids(value: list[Any]) -> bool:
    # type() and not isinstance(): true is an int in Python, but not a token id.
    return all(type(item) is int and item >= 0 for item in value)


_EXAMPLES = ["Write 1994 as a Roman numeral."]
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_TEXTS = {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}}
_LISTS_OF_IDS = {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _IDS}
_PROMPTS = {"anyOf": [{"type": "string"}, _TEXTS, _IDS, _LISTS_OF_IDS], "examples": _EXAMPLES}

PromptField = Annotated[Prompts, PlainValidator(_prompts), WithJsonSchema(_PROMPTS)]
"""Always a tuple of prompts, each a text or token ids, whatever of the four shapes came in."""


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        _check_count(value)
        if all(isinstance(item, str) for item in value):
            return tuple(value)
    raise PydanticCustomError("prompt", "must be a string or a list of strings, and not empty")


TextPromptField = Annotated[
    tuple[str, ...],
    PlainValidator(_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS], "examples": _EXAMPLES}),
]
"""Texts only: what the router reads."""


DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationRequest):
    """OpenAI's completion.

    `prompt` is any of OpenAI's four shapes. With `best_of`, that many are generated and the `n` of them whose tokens
    have the highest mean log-probability are returned.
    """

    foreign: ClassVar = FOREIGN_COMPLETION

    prompt: PromptField
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False

    @property
    def candidates(self) -> int:
        """`best_of`, or `n`."""
        return self.n if self.best_of is None else self.best_of

    @property
    def default_tokens(self) -> int | None:
        """OpenAI's."""
        return None if self.max_tokens == AS_MANY_AS_FIT else DEFAULT_MAX_TOKENS

    @property
    def echoes(self) -> bool:
        """`echo`."""
        return self.echo

    @property
    def top_tokens(self) -> int | None:
        """`logprobs`."""
        return self.logprobs

    @model_validator(mode="after")
    def _agree(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of < self.n:
            raise invalid("best_of", f"best_of must be at least n, here {self.n}")
        if self.stream and self.candidates > self.n:
            raise invalid("best_of", "best_of cannot be streamed: which are best is known at the end")
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens", 'max_tokens must be at least 1, or 0 with "echo": true')
        most = self.default_tokens if self.wanted_tokens is None else self.wanted_tokens
        if most is not None and self.min_tokens > most:
            raise invalid("min_tokens", f"min_tokens must not be greater than max_tokens ({most})")
        return self
