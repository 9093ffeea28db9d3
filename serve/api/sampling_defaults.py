"""What the model's authors recommend for sampling: `generation_config.json` beside the weights, as vLLM reads it."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from serve.api.schemas import GenerationRequest

_FILE = "generation_config.json"


@dataclass(frozen=True)
class SamplingDefaults:
    """Values of the fields that a request leaves out.

    Attributes:
        given: field → value, of those that the model recommends another value for than the API does.
    """

    given: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_directory(cls, directory: Path) -> "SamplingDefaults":
        """Those of a model directory; none where it has no such file.

        Raises:
            ValueError: the file is not JSON, or a value is out of the API's range.
        """
        path = directory / _FILE
        if not path.is_file():
            return cls()
        try:
            config = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not readable JSON: {error}") from error
        given = {}
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
            if (value := config.get(name)) is not None:
                given[name] = _checked(path, name, value)
        return cls({name: value for name, value in given.items() if value != _field(name).default})

    def value(self, body: GenerationRequest, name: str) -> Any:
        """A field of a request, or what stands for it."""
        return getattr(body, name) if name in body.model_fields_set else self.given.get(name, getattr(body, name))


def _checked(path: Path, name: str, value: Any) -> Any:
    field = _field(name)
    try:
        return TypeAdapter(field.rebuild_annotation()).validate_python(value, strict=True)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(
            f"{path}: {name} is {value!r}: {reason}; correct it, or start with --generation-config none"
        ) from error


def _field(name: str) -> Any:
    return GenerationRequest.model_fields[name]
