"""The shape of a recipe."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ByteSize, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from merge.checkpoint import SHARD_BYTES
from merge.experts.config import CalibrationConfig, ExpertConfig
from merge.frank_wolfe import FrankWolfeConfig
from merge.methods import AUTO, METHODS, BoundMethod
from merge.recipe.parameters import bind, by_rows, chooses_scale, values_for
from merge.router import RouterConfig
from merge.selection import LEFT_ALONE

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FRANK_WOLFE = "frank_wolfe"
"""The one method that is not a function of a single tensor."""

RESERVED = ("auto", "backbone")
"""Names that a request's `model` field uses for something else."""


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelEntry(_Block):
    """One fine-tune.

    Attributes:
        model: a full checkpoint (also a GGUF file), or a PEFT LoRA directory, which was then trained on the base.
        adapter: a PEFT LoRA directory that was trained on `model`; `model: path+adapter` is short for both.
        name: by default the directory's.
        parameters: the method's, for this model.
    """

    model: Path
    adapter: Path | None = None
    name: str = ""
    parameters: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_directory(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("name") and isinstance(value.get("model"), str):
            directory = value["adapter"] if isinstance(value.get("adapter"), str) else value["model"]
            name = Path(directory.rpartition("+")[2]).name.partition("@")[0]
            return {**value, "name": name.removesuffix(".gguf")}
        return value

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a valid name: letters, digits, '.', '_' and '-', at most 100")
        if name in RESERVED:
            raise ValueError(f"{name!r} is reserved: requests use it for the {name} choice")
        return name


class BackboneConfig(_Block):
    """How the backbone is stored.

    Attributes:
        storage: bf16: in bfloat16. int8: linear weights, embeddings and the head in 8 bits with a scale a row. int4:
            linear weights in 4 bits with a scale for each 32 columns, embeddings and the head in 8. None: as
            `out_dtype` says.
    """

    storage: Literal["bf16", "int8", "int4"] | None = None


class Recipe(_Block):
    """A whole recipe. Paths are absolute once `load_recipe` returns it.

    Attributes:
        name: the bundle's name; by default the recipe's file name.
        base_model: θ₀, a Hugging Face directory or a GGUF file.
        merge_method: a key of `METHODS`, or frank_wolfe.
        parameters: the method's, for all models.
        models: the fine-tunes.
        dtype: arithmetic.
        out_dtype: stored; None: each tensor in the base's own.
        out_shard_size: most bytes of a file of the backbone, as in 5GB or 512MiB.
        include: shell-style patterns of the tensors that are merged; all others are the base's.
        exclude: patterns of those that are not: by default task heads and buffers.
        backbone: how the backbone is stored.
        experts: how experts are cut.
        calibration: prompts; None: none, so data-free experts and no router.
        router: how the router is trained.
    """

    name: str
    base_model: Path
    merge_method: str = "fr"
    parameters: dict[str, Any] = {}
    models: tuple[ModelEntry, ...] = Field(min_length=1)
    dtype: Literal["float32", "float64"] = "float32"
    out_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    out_shard_size: ByteSize = Field(default=ByteSize(SHARD_BYTES), gt=0)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = LEFT_ALONE
    backbone: BackboneConfig = BackboneConfig()
    experts: ExpertConfig = ExpertConfig()
    calibration: CalibrationConfig | None = None
    router: RouterConfig = RouterConfig()
    _remarks: tuple[str, ...] = PrivateAttr(())
    _layers: int = PrivateAttr(default=0)

    @property
    def quantisation(self) -> Literal["int8", "int4"] | None:
        """How the backbone is rounded; None: it is not."""
        storage = self.backbone.storage
        return None if storage == "bf16" else storage

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """The dtype of the backbone's tensors that are not rounded; None: each tensor's dtype in the base."""
        name = "bfloat16" if self.backbone.storage == "bf16" else self.out_dtype
        return None if name is None else getattr(torch, name)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is done otherwise than the recipe's words suggest."""
        return self._remarks

    def remarked(self, remarks: Sequence[str]) -> Self:
        """The same recipe with remarks."""
        copy = self.model_copy()
        copy._remarks = tuple(remarks)
        return copy

    def of_layers(self, layers: int) -> Self:
        """The same recipe for a base of this many decoder layers, over which gradients are interpolated."""
        copy = self.model_copy()
        copy._layers = layers
        return copy

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        if not NAME.fullmatch(name) or name in RESERVED:
            raise ValueError(f"{name!r} is not a valid name: letters, digits, '.', '_' and '-', not auto or backbone")
        return name

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [entry.name for entry in self.models]
        lowered = [name.casefold() for name in names]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are called {name!r}: give each its own name")
            if lowered.count(name.casefold()) > 1:
                alike = next(other for other in names if other != name and other.casefold() == name.casefold())
                raise ValueError(
                    f"{name!r} and {alike!r} differ only in case; some file systems cannot tell their files apart: "
                    "rename one of them"
                )
            if name == self.name:
                raise ValueError(f"a model has the bundle's name {name!r}: requests could not tell them apart")
        if self.calibration is None and "router" in self.model_fields_set:
            raise ValueError("router needs prompts: add a calibration block with a file")
        if self.backbone.storage == "bf16" and self.out_dtype not in {None, "bfloat16"}:
            raise ValueError(f"backbone.storage bf16 and out_dtype {self.out_dtype} contradict each other: remove one")
        if self.quantisation and self.experts.form == "lora":
            raise ValueError(
                "experts.form: lora keeps LoRAs of the base as they are, but a quantised backbone is not the base: "
                "set experts.form: low_rank, or backbone.storage: bf16"
            )
        if self.quantisation and "backbone" in self.router.chosen_features:
            raise ValueError(
                "router.features: backbone reads an unquantised backbone: set backbone.storage: bf16, or other features"
            )
        if self.experts.form == "lora" and self.merge_method != "base":
            raise ValueError("experts.form: lora keeps LoRAs of the base as they are: set merge_method: base")
        self.experts.resolved(self.calibration is not None)
        return self

    def method(self, scale: float = 1.0) -> BoundMethod:
        """The merge method with this recipe's parameters; not for frank_wolfe.

        Args:
            scale: λ over the usual one, if the recipe has `lambda: auto`.
        """
        return bind(METHODS[self.merge_method], self.parameters, self._by_task, scale, self._layers)

    def by_rows(self, tensor: str) -> bool:
        """Whether a tensor's rows can be merged some at a time."""
        method = METHODS.get(self.merge_method)
        return method is not None and by_rows(method, self.parameters, tensor)

    @property
    def chooses_scale(self) -> bool:
        """Whether λ must be chosen: `lambda: auto`, which is the default if no weights are given."""
        method = METHODS.get(self.merge_method)
        return method is not None and chooses_scale(method, self.parameters, self._by_task)

    @property
    def usual_scale(self) -> float:
        """λ if it is not chosen; for a recipe that `chooses_scale`."""
        method = METHODS[self.merge_method]
        assert method.usual_scale is not None
        return method.usual_scale(method.parameters.model_validate(values_for(self.parameters, "")))

    def scales(self, tensor: str) -> bool:
        """Whether `lambda: auto` is for this tensor: a list by tensor may give others numbers."""
        return values_for(self.parameters, tensor).get("lambda") in {None, AUTO}

    @property
    def _by_task(self) -> dict[str, dict[str, Any]]:
        return {entry.name: entry.parameters for entry in self.models}

    def frank_wolfe(self) -> FrankWolfeConfig | None:
        """The parameters of frank_wolfe; None if another method is asked for."""
        return FrankWolfeConfig.model_validate(self.parameters) if self.merge_method == FRANK_WOLFE else None
