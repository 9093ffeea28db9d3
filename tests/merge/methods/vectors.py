"""Random task vectors to merge."""

from collections.abc import Mapping

import torch
from torch import Tensor

from merge.methods import BoundMethod, TaskVectors, find_method


def random_vectors(
    shape: tuple[int, ...], count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"task{i}": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for i in range(count)}


def stream(vectors: Mapping[str, Tensor], order: list[str] | None = None) -> TaskVectors:
    return TaskVectors(order or list(vectors), lambda task: vectors[task].clone())


def bound(name: str, by_task: Mapping[str, Mapping[str, object]] | None = None, **parameters: object) -> BoundMethod:
    method = find_method(name)
    own = {task: method.task_parameters.model_validate(values) for task, values in (by_task or {}).items()}
    return method.bind(method.parameters.model_validate(parameters), own)
