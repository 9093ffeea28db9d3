"""The body of POST /v1/completions."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from serve.api.errors import invalid
from serve.api.schemas import foreign
from serve.api.schemas.generation import AS_MANY_AS_FIT, GenerationRequest
from serve.api.schemas.prompt import PromptField
from serve.engine.request import MAX_LOGPROBS

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationRequest):
    """OpenAI's completion.

    `prompt` is any of OpenAI's four shapes. With `best_of`, that many are generated and the `n` of them whose tokens
    have the highest mean log-probability are returned.
    """

    foreign: ClassVar = foreign.COMPLETION

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
