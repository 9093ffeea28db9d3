"""The bodies of POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from serve.api.schemas.body import MAX_NAME, Body
from serve.api.schemas.expert import Path
from serve.config import ADAPTER_NAME


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
