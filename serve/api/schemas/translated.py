"""What bodies of other APIs have in common: each says the same as some chat."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from serve.api.errors import ApiError
from serve.api.schemas.body import Body, ModelName
from serve.api.schemas.chat import MAX_TEMPLATE_VARIABLES, ChatRequest, VariablesField
from serve.api.schemas.generation import Experts, Int64, RequestId
from serve.api.schemas.parse import named


class TranslatedRequest(Body):
    """A body that is answered as a chat, with the fields of this server's own that all of them take.

    Attributes:
        names: field of the chat → the body's, for what is refused later.
    """

    names: ClassVar[Mapping[str, str]] = {}

    model: Annotated[ModelName | None, Field(examples=["auto"])] = None
    experts: Experts | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Int64 | None = None
    ignore_eos: bool = False
    stream: bool = False
    priority: Int64 = 0
    request_id: RequestId | None = None
    chat_template_kwargs: Annotated[Mapping[str, Any], Field(max_length=MAX_TEMPLATE_VARIABLES), VariablesField] = {}

    @abstractmethod
    def chat_fields(self) -> dict[str, Any]:
        """The chat's fields beside those that have the same name here."""

    @cached_property
    def chat(self) -> ChatRequest:
        """The chat. Fields that the request leaves out stay out, so that the model's defaults hold.

        Raises:
            ApiError: 400, the request cannot be translated to a chat.
        """
        common = (name for name in TranslatedRequest.model_fields if name in self.model_fields_set)
        fields = {**{name: getattr(self, name) for name in common}, **self.chat_fields()}
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            return ChatRequest.model_validate(given)
        except ValidationError as error:
            raise self.renamed(named(error, given)) from error
        except ApiError as error:
            raise self.renamed(error) from error

    def renamed(self, error: ApiError) -> ApiError:
        """The error, which names the field of the chat, with the name that the field has here."""
        first, dot, rest = (error.param or "").partition(".")
        if first in self.names:
            error.param = f"{self.names[first]}{dot}{rest}"
        return error

    @model_validator(mode="after")
    def _says_a_chat(self) -> "TranslatedRequest":
        assert self.chat is not None  # translated once, while the body is read
        return self
