"""The recipe's `experts:` and `calibration:` blocks."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merge.experts.storage import Storage
from merge.methods.vectors import EMBEDDINGS

Selection = Literal["magnitude", "activation"]
Values = Literal["rescaled", "exact", "least_squares"]


class CalibrationConfig(BaseModel):
    """Where the prompts of the tasks are.

    Attributes:
        file: JSON lines, each {"task": ..., "prompt": ...}.
        per_task: prompts of each task that the experts are cut with (the first ones; the router sees all).
        answer_tokens: tokens of its own greedy continuation that a fine-tune adds to each prompt, at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path
    per_task: int = Field(default=48, ge=1)
    answer_tokens: int = Field(default=64, ge=1)


class ExpertConfig(BaseModel):
    """How to cut the experts.

    Attributes:
        density: fraction of a weight's entries that an expert keeps, the same number in every row.
        selection: which entries: `magnitude`, the largest of the task vector in each row (the paper; needs no data), or
            `activation`, those that matter for what the layer computes. None: `activation` with a calibration.
        values: `rescaled`, the task vector times μ (the paper); `exact`; or `least_squares`, fitted to the layer's
            output. None: what suits the selection.
        rescale: μ for `rescaled`: `code` or `paper` (closed forms), or a number. None: `code`.
        overlap: for `rescaled` and `exact`: `add` the value to the backbone (the paper's formula) or `replace` the
            backbone's change of that entry by it (the released code). None: `add`, but `replace` for `exact`.
        distill: steps of distillation of the values; None: 60 where there is a calibration.
        storage: of the values: `bf16`, 4 bytes an entry with its column, or `int8`, about 2 and a scale for each row.
        dense_1d: keep the exact residual of norms and biases.
        include: shell-style patterns of the 2-D weights that get a residual.
        exclude: patterns of those that do not.
        seed: seed of the distillation's batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    density: float = Field(default=0.02, gt=0, le=1)
    selection: Selection | None = None
    values: Values | None = None
    rescale: Literal["paper", "code"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    overlap: Literal["add", "replace"] | None = None
    distill: int | None = Field(default=None, ge=0)
    storage: Storage = "bf16"
    dense_1d: bool = True
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = EMBEDDINGS
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.values == "least_squares" and (self.rescale is not None or self.overlap is not None):
            raise ValueError("rescale and overlap say nothing about values: least_squares; leave them out")
        if self.values == "exact" and self.rescale is not None:
            raise ValueError("rescale needs values: rescaled")
        return self

    def resolved(self, calibrated: bool) -> Self:
        """Fill in what depends on whether there are calibration prompts.

        Raises:
            ValueError: something needs prompts and there are none.
        """
        selection = self.selection or ("activation" if calibrated else "magnitude")
        values = self.values or (
            "rescaled" if selection == "magnitude" or self.rescale is not None else "least_squares"
        )
        distill = self.distill if self.distill is not None else (60 if calibrated else 0)
        needs = [
            text
            for text, asked in (
                ("selection: activation", selection == "activation"),
                ("values: least_squares", values == "least_squares"),
                (f"distill: {distill}", distill > 0),
            )
            if asked
        ]
        if needs and not calibrated:
            raise ValueError(f"{needs[0]} needs prompts: add a calibration block with a file")
        filled: dict[str, object] = {"selection": selection, "values": values, "distill": distill}
        if values != "least_squares":
            filled["overlap"] = self.overlap or ("replace" if values == "exact" else "add")
        if values == "rescaled":
            filled["rescale"] = self.rescale or "code"
        return self.model_copy(update=filled)
