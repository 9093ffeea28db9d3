"""A method's parameters as a recipe writes them: plain values, or lists that give tensors values of their own.

A list `[{filter: mlp, value: 0.5}, {filter: norm, value: 0}, 0.3]` is mergekit's: a tensor gets the value of the first
filter that its name contains; an entry without a filter (or with "*") suits every tensor. A tensor that no entry suits
has no value here, so a model's list falls back to the method's parameters, and those to the method's defaults.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from merge.methods import AUTO, BoundMethod, Method, TaskVectors

Parameters = Mapping[str, Any]


def is_filtered(value: object) -> bool:
    """Whether a parameter is a list of values for different tensors."""
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def alternatives(value: Any) -> Iterator[Any]:
    """Every value that a parameter can take.

    Raises:
        ValueError: an entry of a list is neither a plain value nor {filter, value}.
    """
    if not is_filtered(value):
        yield value
        return
    for entry in value:
        if not isinstance(entry, dict):
            yield entry
        elif "value" in entry and set(entry) <= {"filter", "value"} and isinstance(entry.get("filter", ""), str | None):
            yield entry["value"]
        else:
            raise ValueError(f"{entry} is no entry of a list by tensor; write {{filter: part of a name, value: …}}")


def values_for(parameters: Parameters, tensor: str) -> dict[str, Any]:
    """The parameters of one tensor."""
    found = {}
    for key, value in parameters.items():
        for entry in value if is_filtered(value) else [value]:
            if not (is_filtered(value) and isinstance(entry, dict)):
                found[key] = entry
                break
            wanted = entry.get("filter")
            if wanted in {None, "*"} or wanted in tensor:
                found[key] = entry["value"]
                break
    return found


def chooses_scale(method: Method, common: Parameters, by_task: Mapping[str, Parameters]) -> bool:
    """Whether λ is to be chosen: the parameters say `auto`, or they give neither λ nor any weight."""
    if method.usual_scale is None:
        return False
    if common.get("lambda") is not None:
        return AUTO in alternatives(common["lambda"])
    return not any("weight" in block for block in (common, *by_task.values()))


def by_rows(method: Method, common: Parameters, tensor: str) -> bool:
    """Whether the method merges a tensor with these parameters some rows at a time."""
    return method.by_rows(tensor, method.parameters.model_validate(values_for(common, tensor)))


def bind(method: Method, common: Parameters, by_task: Mapping[str, Parameters], scale: float = 1.0) -> BoundMethod:
    """A method with parameters that `alternatives` and the method's schemas have accepted.

    Args:
        method: the method.
        common: for all models.
        by_task: each model's own.
        scale: λ over the usual one, where the parameters say `auto`.
    """

    def bound_for(tensor: str) -> BoundMethod:
        own = {
            task: method.task_parameters.model_validate(values_for(parameters, tensor))
            for task, parameters in by_task.items()
        }
        return method.bind(method.parameters.model_validate(values_for(common, tensor)), own, scale)

    everywhere = not any(is_filtered(value) for block in (common, *by_task.values()) for value in block.values())
    if everywhere:
        return bound_for("")

    def merged(name: str, base: Tensor, vectors: TaskVectors) -> Tensor:
        return bound_for(name)(name, base, vectors)

    return merged
