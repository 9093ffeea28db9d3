"""What all bodies have in common."""

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
