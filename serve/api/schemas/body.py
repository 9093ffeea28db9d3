"""What all bodies have in common, and the fields that this server does not implement."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_NAME = 1024
"""Characters of the name of a model or an expert."""

_MAX_UNKNOWN = 64


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


ListField = BeforeValidator(_tuple)
"""Marks a tuple that comes as a JSON list."""

ModelName = Annotated[str, Field(max_length=MAX_NAME, examples=["auto"])]
"""What `model` says."""


class Body(BaseModel):
    """A checked body: frozen, of the types that JSON has, with no field but its own.

    Attributes:
        foreign: fields that clients know and this server does not implement, with the values that ask for nothing.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    foreign: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        cls.check_field_count(value)
        return value

    @classmethod
    def check_field_count(cls, value: Any) -> None:
        """Refuse at once what has far too many fields: pydantic would make an error of each unknown one.

        Raises:
            PydanticCustomError: it has.
        """
        most = len(cls.model_fields) + _MAX_UNKNOWN
        if isinstance(value, dict) and len(value) > most:
            raise PydanticCustomError("fields", "may hold at most {most} fields", {"most": most})


# Fields of OpenAI's or vLLM's requests that this server does not implement. A client library may send one of them with
# the value that asks for nothing. The server then does nothing. Any other value is refused, so that no field is ever
# accepted and ignored.

_GENERATION: Mapping[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "session_id": (),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "cache_salt": (),
    "vllm_xargs": (),
    "kv_transfer_params": (),
    "repetition_detection": (),
    "stream_interval": (1,),
}

FOREIGN_COMPLETION: Mapping[str, tuple[Any, ...]] = {**_GENERATION, "suffix": ("",), "prompt_embeds": ()}
"""Field of a completion → the values, beside null, that ask for nothing."""

FOREIGN_CHAT: Mapping[str, tuple[Any, ...]] = {
    **_GENERATION,
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "include_reasoning": (),
    "verbosity": (),
    "store": (False,),
    "prompt_cache_options": (),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "best_of": (1,),
    "mm_processor_kwargs": (),
}
"""The same of a chat."""


def asks_for_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether `value` is null or one of the `neutral` ones."""
    # 1 == True and 0 == False in Python: compare the types too, but let 1 stand for 1.0.
    return value is None or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral
    )
