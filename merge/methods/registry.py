"""The table of methods, and the check of a recipe's parameters against a method's signature."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, create_model
from torch import Tensor

from merge.methods.vectors import PerTask, TaskVectors

BoundMethod = Callable[[str, Tensor, TaskVectors], Tensor]
"""A method with its parameters filled in: (tensor name, base tensor, task vectors) to merged tensor."""


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
    """

    name: str
    summary: str
    function: Callable[..., Tensor]
    parameters: type[BaseModel]
    task_parameters: type[BaseModel]

    def bind(self, parameters: BaseModel, by_task: Mapping[str, BaseModel]) -> BoundMethod:
        """Fill in parameters that were validated by the two schemas; a model's own value goes before the common one."""
        common = {field: getattr(parameters, field) for field in type(parameters).model_fields}
        for field in self.task_parameters.model_fields:
            own = {task: getattr(model, field) for task, model in by_task.items()}
            common[field] = PerTask(common[field], {task: value for task, value in own.items() if value is not None})

        def bound(name: str, base: Tensor, vectors: TaskVectors) -> Tensor:
            return self.function(name, base, vectors, **common)

        return bound


METHODS: dict[str, Method] = {}
"""Every method by name, filled by the decorator."""


def method(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function as the merge method `name`.

    The function takes (tensor name, base tensor, task vectors) and keyword-only parameters with defaults. A trailing
    underscore, as in `lambda_`, is not part of the parameter's name in a recipe.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        common: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            alias = parameter.name.rstrip("_")
            kind, default = parameter.annotation, parameter.default
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
        )
        return function

    return register


def find_method(name: str) -> Method:
    """Look a method up.

    Raises:
        ParameterError: no such method; lists those that exist.
    """
    if name not in METHODS:
        raise ParameterError(f"unknown merge_method {name!r}; there are {', '.join(sorted(METHODS))}")
    return METHODS[name]
