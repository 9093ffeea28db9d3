"""What the model's authors recommend for sampling: `generation_config.json` beside the weights, as vLLM reads it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.bundle import BundleError, sampling_defaults
from serve.api.schemas import GenerationRequest


@dataclass(frozen=True)
class SamplingDefaults:
    """Values of the fields that a request leaves out.

    Attributes:
        given: field → value, of those that the model recommends another value for than the API does.
    """

    given: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, fields: Mapping[str, float]) -> "SamplingDefaults":
        """Those of some fields of generation_config.json."""
        usual = GenerationRequest.model_fields
        return cls({name: value for name, value in fields.items() if value != usual[name].default})

    @classmethod
    def from_directory(cls, directory: Path) -> "SamplingDefaults":
        """Those of a model directory; none where it has no such file.

        Raises:
            ValueError: the file is not JSON, or a value is out of the API's range.
        """
        try:
            return cls.of(sampling_defaults(directory) or {})
        except BundleError as error:
            raise ValueError(f"{error}; correct it, or start with --generation-config none") from error

    def value(self, body: GenerationRequest, name: str) -> Any:
        """A field of a request, or what stands for it."""
        return getattr(body, name) if name in body.model_fields_set else self.given.get(name, getattr(body, name))
