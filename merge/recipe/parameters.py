"""A method's parameters as a recipe writes them: plain values, or lists with values for single tensors.

A list `[{filter: mlp, value: 0.5}, {filter: norm, value: 0}, 0.3]` is mergekit's: a tensor gets the value of the first
filter that its name contains; an entry without a filter (or with "*") suits every tensor. A tensor that no entry suits
has no value here, so a model's list falls back to the method's parameters, and those to the method's defaults.

A list of numbers, alone or as the value of a filter, is mergekit's gradient: the numbers stand at equal distances from
the first decoder layer to the last, and a layer between them gets the linear interpolation. Embeddings get the
first number, and what follows the layers the last one.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from merge.methods import AUTO, BoundMethod, Method, TaskVectors

Parameters = Mapping[str, Any]

LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")
BEFORE_LAYERS = ("embed", ".wte.", ".wpe.")
"""Parts of the names of tensors that come before the layers."""


def is_filtered(value: object) -> bool:
    """Whether a parameter is a list of values for different tensors."""
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def is_gradient(value: object) -> bool:
    """Whether a parameter is a list of numbers over the layers."""
    return isinstance(value, list) and bool(value) and all(_is_number(item) for item in value)


def layer_count(tensors: Collection[str]) -> int:
    """How many decoder layers the tensors of a model are of."""
    found = (LAYER.search(name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def along_layers(numbers: Sequence[float], tensor: str, layers: int) -> float:
    """A gradient's value for one tensor.

    Semantics: x_⌊s⌋ + (s − ⌊s⌋) (x_⌊s⌋₊₁ − x_⌊s⌋) with s = (n − 1) t, t = i / (layers − 1) in layer i; t = 0 for
    embeddings and 1 for everything else
    """
    match = LAYER.search(tensor)
    if match is not None:
        place = int(match[1]) / max(layers - 1, 1)
    else:
        place = 0.0 if any(part in tensor for part in BEFORE_LAYERS) else 1.0
    at = place * (len(numbers) - 1)
    low = min(int(at), len(numbers) - 1)
    high = min(low + 1, len(numbers) - 1)
    return numbers[low] + (at - low) * (numbers[high] - numbers[low])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def alternatives(value: Any) -> Iterator[Any]:
    """Every value that a parameter can take.

    Raises:
        ValueError: an entry of a list is neither a plain value nor {filter, value}.
    """
    if is_gradient(value):
        yield from value
        return
    if not is_filtered(value):
        yield value
        return
    for entry in value:
        if not isinstance(entry, dict):
            yield entry
        elif "value" in entry and set(entry) <= {"filter", "value"} and isinstance(entry.get("filter", ""), str | None):
            yield from alternatives(entry["value"]) if not is_filtered(entry["value"]) else [entry["value"]]
        else:
            raise ValueError(f"{entry} is not an entry of a list by tensor; write {{filter: part of a name, value: …}}")


def values_for(parameters: Parameters, tensor: str, layers: int = 0) -> dict[str, Any]:
    """The parameters of one tensor.

    Args:
        parameters: as a recipe writes them.
        tensor: its name.
        layers: of the model, which gradients go over.
    """
    found = {}
    for key, value in parameters.items():
        for entry in value if is_filtered(value) else [value]:
            filtered = is_filtered(value) and isinstance(entry, dict)
            wanted = entry.get("filter") if filtered else None
            if wanted in {None, "*"} or wanted in tensor:
                chosen = entry["value"] if filtered else entry
                found[key] = along_layers(chosen, tensor, layers) if is_gradient(chosen) else chosen
                break
    return found


def chooses_scale(method: Method, common: Parameters, by_task: Mapping[str, Parameters]) -> bool:
    """Whether λ must be chosen: the parameters say `auto`, or they give neither λ nor any weight."""
    if method.usual_scale is None:
        return False
    if common.get("lambda") is not None:
        return AUTO in alternatives(common["lambda"])
    return not any("weight" in block for block in (common, *by_task.values()))


def by_rows(method: Method, common: Parameters, tensor: str) -> bool:
    """Whether the method merges a tensor with these parameters some rows at a time."""
    return method.by_rows(tensor, method.parameters.model_validate(values_for(common, tensor)))


def bind(
    method: Method, common: Parameters, by_task: Mapping[str, Parameters], scale: float = 1.0, layers: int = 0
) -> BoundMethod:
    """A method with parameters that `alternatives` and the method's schemas have accepted.

    Args:
        method: the method.
        common: for all models.
        by_task: each model's own.
        scale: λ over the usual one, if the parameters say `auto`.
        layers: number of the model's layers, over which lists of numbers are interpolated.
    """

    def bound_for(tensor: str) -> BoundMethod:
        own = {
            task: method.task_parameters.model_validate(values_for(parameters, tensor, layers))
            for task, parameters in by_task.items()
        }
        return method.bind(method.parameters.model_validate(values_for(common, tensor, layers)), own, scale)

    values = [value for block in (common, *by_task.values()) for value in block.values()]
    everywhere = not any(is_filtered(value) or is_gradient(value) for value in values)
    if everywhere:
        return bound_for("")

    def merged(name: str, base: Tensor, vectors: TaskVectors) -> Tensor:
        return bound_for(name)(name, base, vectors)

    return merged
