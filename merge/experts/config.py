"""The recipe's `experts:` and `calibration:` blocks."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from merge.experts.storage import Storage
from merge.methods.vectors import EMBEDDINGS

Form = Literal["auto", "sparse", "low_rank", "both", "lora"]
Selection = Literal["magnitude", "residual", "activation"]
Values = Literal["rescaled", "exact", "least_squares"]

FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0)
"""What μ is chosen from by `rescale: calibrated`; the papers' own range from 1 to 10."""

USUAL_BUDGET = 0.01
"""Bytes of an expert as a fraction of the backbone's, the default of a recipe without a budget and a density."""

USUAL_DENSITY = 0.02
"""Density of `form: sparse`, the default of a recipe without a density and a budget."""

USUAL_STEPS = 60
"""Default steps of distillation of sparse experts, if there are prompts."""

USUAL_FACTOR_STEPS = 30
"""Default steps of the other forms, whose parts are fitted to the prompts first."""

SPARSE_KEYS = ("density", "selection", "values", "rescale", "overlap")
"""Settings of sparse experts: a recipe that has one of them, and neither form nor budget, means `form: sparse`."""

USUAL_MOST = 2.0
"""The largest μ that passes without a warning.

|μτ − τ| > |τ| beyond it: every entry that such an expert keeps is farther from the fine-tune's value than the base's
entry is, so the expert is only right if the entries that are left out make up for that.
"""


def _fraction(value: object) -> object:
    """Read 1% as 0.01."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip().removesuffix("%")) / 100
        except ValueError:
            return value
    return value


Fraction = Annotated[float, BeforeValidator(_fraction), Field(gt=0, le=1, allow_inf_nan=False)]


class CalibrationConfig(BaseModel):
    """Where the prompts of the tasks are.

    Attributes:
        file: JSON lines, each {"task": ..., "prompt": ...} or {"task": ..., "messages": [...]}.
        per_task: prompts of each task that the experts are cut with (the first ones; the router sees all).
        answer_tokens: most tokens of the greedy continuation that a fine-tune adds to each prompt.
        chat_template: `auto`: the fine-tune's chat template is applied to prompts, or the base's if it has none,
            as the server does with chat requests; `none`: they are used unchanged, as in completion requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path
    per_task: int = Field(default=48, ge=1)
    answer_tokens: int = Field(default=64, ge=1)
    chat_template: Literal["auto", "none"] = "auto"


class ExpertConfig(BaseModel):
    """How to cut the experts.

    Attributes:
        form: what an expert adds to a 2-D weight: `sparse`, some entries of each row; `low_rank`, a product of two
            thin matrices; `both`, a product in half of the bytes and entries of what is left; `auto`, for each weight
            the one that removes more of the error for its bytes; or `lora`, the fine-tune's own LoRA as it is, whatever
            its bytes. None: `auto`, but `sparse` if one of `SPARSE_KEYS` is given and `budget` is not.
        budget: bytes of an expert as a fraction of the backbone's, 0.01 or 1%. All weights share it. None: 1 %; for
            `sparse` the density decides.
        density: for `sparse`: fraction of a weight's entries that an expert keeps, the same number in every row. None:
            0.02, or what the budget pays for.
        selection: for `sparse`, which entries: `magnitude`, the largest of the task vector θ_k − θ₀ in each row (the
            paper; needs no data); `residual`, the largest of θ_k − θ_m, what the backbone still lacks; or
            `activation`, those that matter for what the layer computes. None: `activation` with a calibration; without
            one `residual`, or `magnitude` if `rescale` or `overlap` is given. For the other forms, which directions:
            `residual`, those of θ_k − θ_m, or `activation`, those that matter for what the layer computes.
        values: `rescaled`, the vector that entries are selected from times μ (the paper); `exact`; or `least_squares`,
            fitted to the layer's output. None: `rescaled` if `rescale` is given, else `least_squares` for
            `activation` and `exact` for the others.
        rescale: μ for `rescaled`: `nearest` (which minimises the distance from the fine-tune's weights), `code` or
            `paper` (their closed forms), `calibrated` (of `FACTORS`, the one that comes closest to the fine-tune on the
            calibration prompts), or a number. None: `calibrated` for `activation`, else `nearest`.
        overlap: for `rescaled` and `exact` values of the task vector: `add` them to the backbone (the paper's formula)
            or `replace` the backbone's change of the entry by them (the released code). None: `add`, but `replace` for
            `exact`.
        distill: steps of distillation of the values; None: 60 (`sparse`) or 30 (the other forms) if another of
            these settings needs prompts.
        storage: of the values: `bf16`, 4 bytes an entry with its column, or `int8`, about 2 and a scale for each row;
            of factors: 2 bytes a number, or 1 and a scale for each direction.
        dense_1d: keep the exact residual of norms and biases.
        include: shell-style patterns of the 2-D weights that get a residual.
        exclude: patterns of those that do not. None: none; for `sparse` embeddings and heads.
        seed: seed of the distillation's batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Form | None = None
    budget: Fraction | None = None
    density: float | None = Field(default=None, gt=0, le=1)
    selection: Selection | None = None
    values: Values | None = None
    rescale: (
        Literal["nearest", "paper", "code", "calibrated"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    ) = None
    overlap: Literal["add", "replace"] | None = None
    distill: int | None = Field(default=None, ge=0)
    storage: Storage = "int8"
    dense_1d: bool = True
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.values == "least_squares" and (self.rescale is not None or self.overlap is not None):
            raise ValueError("rescale and overlap have no effect with values: least_squares; leave them out")
        if self.values == "exact" and self.rescale is not None:
            raise ValueError("rescale needs values: rescaled")
        if self.selection == "residual" and self.overlap is not None:
            raise ValueError("overlap has no effect with selection: residual, which is added; leave it out")
        if self.budget is not None and self.density is not None:
            raise ValueError("budget and density both say how large an expert is: leave one of them out")
        if self.form == "lora" and (self.budget is not None or self.distill):
            raise ValueError("budget and distill have no effect with form: lora, which keeps a LoRA as it is")
        if self.shape != "sparse":
            given = [key for key in SPARSE_KEYS if getattr(self, key) is not None]
            odd = [key for key in given if key != "selection" or self.selection == "magnitude" or self.form == "lora"]
            if odd:
                said = f"selection: {self.selection}" if odd[0] == "selection" else odd[0]
                raise ValueError(f"{said} is for form: sparse; leave it out, or set form: sparse")
        return self

    @property
    def shape(self) -> Form:
        """The form, also if the recipe leaves it to be inferred."""
        if self.form is not None:
            return self.form
        given = self.budget is None and any(getattr(self, key) is not None for key in SPARSE_KEYS)
        return "sparse" if given else "auto"

    @property
    def needs_prompts(self) -> bool:
        """Whether the experts of a resolved configuration are cut with calibration prompts."""
        return bool(self._needs())

    def _needs(self) -> list[str]:
        """The settings that need prompts, as a recipe says them."""
        return [
            text
            for text, asked in (
                ("selection: activation", self.selection == "activation"),
                ("values: least_squares", self.values == "least_squares"),
                ("rescale: calibrated", self.rescale == "calibrated"),
                (f"distill: {self.distill}", bool(self.distill)),
            )
            if asked
        ]

    def resolved(self, calibrated: bool) -> Self:
        """Fill in what depends on whether there are calibration prompts.

        Raises:
            ValueError: something needs prompts and there are none.
        """
        form = self.shape
        exclude = self.exclude if self.exclude is not None else EMBEDDINGS if form == "sparse" else ()
        if form != "sparse":
            return self._resolved_factors(form, exclude, calibrated)
        given = self.rescale is not None
        data_free: Selection = "magnitude" if given or self.overlap is not None else "residual"
        selection = self.selection or ("activation" if calibrated else data_free)
        values = self.values or ("rescaled" if given else "least_squares" if selection == "activation" else "exact")
        filled: dict[str, object] = {"form": form, "exclude": exclude, "selection": selection, "values": values}
        if self.density is None and self.budget is None:
            filled["density"] = USUAL_DENSITY
        if values != "least_squares" and selection != "residual":
            filled["overlap"] = self.overlap or ("replace" if values == "exact" else "add")
        if values == "rescaled":
            filled["rescale"] = self.rescale or ("calibrated" if selection == "activation" else "nearest")
            if selection == "activation" and self.rescale == "nearest":
                raise ValueError("rescale: nearest needs selection: magnitude or residual; use rescale: calibrated")
        found = self.model_copy(update=filled)
        if self.distill is None:
            found = found.model_copy(update={"distill": USUAL_STEPS if found.needs_prompts else 0})
        return found._possible(calibrated)

    def _resolved_factors(self, form: Form, exclude: tuple[str, ...], calibrated: bool) -> Self:
        filled: dict[str, object] = {"form": form, "exclude": exclude, "distill": self.distill or 0}
        if form != "lora":
            selection: Selection = self.selection or ("activation" if calibrated else "residual")
            filled |= {"selection": selection, "budget": self.budget or USUAL_BUDGET}
            if self.distill is None and selection == "activation":
                filled["distill"] = USUAL_FACTOR_STEPS
        return self.model_copy(update=filled)._possible(calibrated)

    def _possible(self, calibrated: bool) -> Self:
        needs = self._needs()
        if needs and not calibrated:
            raise ValueError(f"{needs[0]} needs prompts: add a calibration block with a file")
        return self
