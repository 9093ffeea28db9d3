"""The bodies of POST /v1/experts/load, /reload and /unload, and of vLLM's routes for LoRA adapters."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from serve.api.errors import invalid
from serve.api.schemas.body import MAX_NAME, Body, ListField
from serve.config import ADAPTER_NAME

ExpertName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Generation = Annotated[int, Field(ge=0)]
Path = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]


class UnloadExpertRequest(Body):
    """Forget an expert. `expected_generation` must be its generation now, so that no concurrent change is lost."""

    name: ExpertName
    expected_generation: Generation | None = None


class ReloadExpertRequest(UnloadExpertRequest):
    """Read an expert's file again."""


class LoadExpertRequest(UnloadExpertRequest):
    """Load an expert from a file in one of the configured directories, or replace one; generation 0 is "not there".

    The router learns of it through `router`, a directory of such a router that has a head of this name, or through
    `prompts` that it should answer. Without either, a new expert is reached by its name alone.
    """

    path: Path
    router: Path | None = None
    prompts: (
        Annotated[
            tuple[Annotated[str, Field(min_length=1, max_length=65_536)], ...],
            Field(fail_fast=True, min_length=2, max_length=1024),
            ListField,
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _one(self) -> "LoadExpertRequest":
        if self.router is not None and self.prompts is not None:
            raise invalid("prompts", "router and prompts both teach the router; give one of them")
        return self


class LoadLoraRequest(Body):
    """Load a LoRA adapter from a directory within one of the configured directories."""

    foreign: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_3d_lora_weight": (False,)}

    lora_name: Annotated[str, Field(pattern=ADAPTER_NAME)]
    lora_path: Path
    load_inplace: bool = False


class UnloadLoraRequest(Body):
    """Forget a LoRA adapter."""

    foreign: ClassVar[Mapping[str, tuple[Any, ...]]] = {"lora_int_id": ()}

    lora_name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
