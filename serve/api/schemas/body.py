"""What all bodies have in common."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


ListField = BeforeValidator(_tuple)
"""Marks a tuple that comes as a JSON list."""

ModelName = Annotated[str, Field(examples=["auto"])]
"""What `model` says."""


class Body(BaseModel):
    """A checked body: frozen, of the types that JSON has, with no field but its own.

    Attributes:
        foreign: fields that clients know and this server does not implement, with the values that ask for nothing.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    foreign: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
