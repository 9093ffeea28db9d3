"""The table of methods, and the check of a recipe's parameters against a method's signature."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model
from torch import Tensor

from merge.methods.vectors import PerTask, TaskVectors, is_excluded

BoundMethod = Callable[[str, Tensor, TaskVectors], Tensor]
"""A method with its parameters filled in: (tensor name, base tensor, task vectors) to merged tensor."""


SCALE = "lambda_"
"""λ, what a method multiplies the merged task vectors by: θ₀ + λ τ, whatever τ is."""

AUTO = "auto"
"""Its default in a recipe: it is chosen for the model, or if it cannot be, is the method's usual one."""


def _number_or_auto(value: object) -> object:
    if value is None or value == AUTO:
        return AUTO
    try:
        number = float(cast("float", value))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} must be a number or {AUTO}")
    return number


Scale = Annotated[float | Literal["auto"], BeforeValidator(_number_or_auto)]
"""λ as a recipe writes it."""


def never(_name: str, _parameters: Any) -> bool:
    """What a method says that needs every tensor as a whole."""
    return False


def always(_name: str, _parameters: Any) -> bool:
    """What a method says whose merged entries depend on the same entries of the models alone."""
    return True


def where_excluded(name: str, parameters: Any) -> bool:
    """What a method says that treats matrices as a whole, and averages the entries of those that `exclude` names."""
    return is_excluded(name, parameters.exclude)


class ParameterError(ValueError):
    """A method that does not exist, or that does not take such a parameter. The message is one line."""


@dataclass(frozen=True)
class Method:
    """One merge method.

    Attributes:
        name: how a recipe calls it.
        summary: its docstring's first line.
        function: (name, base, vectors, **parameters) to merged tensor.
        parameters: schema of a recipe's `parameters`.
        task_parameters: schema of one model's `parameters`.
        usual_scale: λ if nothing says how large it should be, for the parameters of `parameters`; None: the method
            has no λ.
        by_rows: whether the merged rows of a tensor depend on the same rows of the models alone, by the tensor's name
            and the parameters of `parameters`.
    """

    name: str
    summary: str
    function: Callable[..., Tensor]
    parameters: type[BaseModel]
    task_parameters: type[BaseModel]
    usual_scale: Callable[[Any], float] | None = None
    by_rows: Callable[[str, Any], bool] = never

    def bind(self, parameters: BaseModel, by_task: Mapping[str, BaseModel], scale: float = 1.0) -> BoundMethod:
        """Fill in parameters that were validated by the two schemas; a model's own value goes before the common one.

        Args:
            parameters: for all models.
            by_task: each model's own.
            scale: λ over the usual one, if the parameters say `auto`.
        """
        common = {field: getattr(parameters, field) for field in type(parameters).model_fields}
        if self.usual_scale is not None and common[SCALE] == AUTO:
            common[SCALE] = scale * self.usual_scale(parameters)
        for field in self.task_parameters.model_fields:
            own = {task: getattr(model, field) for task, model in by_task.items()}
            common[field] = PerTask(common[field], {task: value for task, value in own.items() if value is not None})

        def bound(name: str, base: Tensor, vectors: TaskVectors) -> Tensor:
            return self.function(name, base, vectors, **common)

        return bound


METHODS: dict[str, Method] = {}
"""Every method by name, filled by the decorator."""


def method(
    name: str, usual_scale: Callable[[Any], float] | None = None, by_rows: Callable[[str, Any], bool] = never
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function as the merge method `name`.

    The function takes (tensor name, base tensor, task vectors) and keyword-only parameters with defaults. A trailing
    underscore, as in `lambda_`, is not part of the parameter's name in a recipe. A function with `lambda_` gives
    θ₀ + λ τ with a τ that does not depend on λ, and recipes may say `lambda: auto`.

    Args:
        name: how a recipe calls it.
        usual_scale: the usual λ for some parameters; None: the default of `lambda_`.
        by_rows: as in `Method`.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        common: dict[str, Any] = {}
        own: dict[str, Any] = {}
        usual: Callable[[Any], float] | None = None
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            alias = parameter.name.rstrip("_")
            kind, default = parameter.annotation, parameter.default
            if parameter.name == SCALE:
                usual = usual_scale or partial(_same, default)
                kind, default = Scale, AUTO
            if isinstance(default, PerTask):
                finite = Field(allow_inf_nan=False)
                kind = Annotated[float, finite, *getattr(kind, "__metadata__", ())]
                own[parameter.name] = (kind | None, Field(None, alias=alias))
                default = default.common
            common[parameter.name] = (kind, Field(default, alias=alias))
        config = ConfigDict(extra="forbid", frozen=True)
        METHODS[name] = Method(
            name,
            cast("str", inspect.getdoc(function)).splitlines()[0],
            function,
            create_model(f"{name} parameters", __config__=config, **common),
            create_model(f"{name} model parameters", __config__=config, **own),
            usual,
            by_rows,
        )
        return function

    return register


def _same(value: float, _parameters: BaseModel) -> float:
    return value


def find_method(name: str) -> Method:
    """Look a method up.

    Raises:
        ParameterError: no such method; lists those that exist.
    """
    if name not in METHODS:
        raise ParameterError(f"unknown merge_method {name!r}; there are {', '.join(sorted(METHODS))}")
    return METHODS[name]
