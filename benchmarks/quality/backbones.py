"""Merging a row's backbone, once for each seed, and choosing its λ on validation data."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.quality.domain import Mergeable, Weights
from benchmarks.quality.rows import Row, frank_wolfe_config
from benchmarks.quality.store import Store
from merge.bundle.files import replaced
from merge.checkpoint import Checkpoint
from merge.frank_wolfe import merge_frank_wolfe
from merge.methods import TaskVectors, find_method


class Backbones:
    """The backbones of one domain and seed."""

    def __init__(self, domain: Mergeable, store: Store, seed: int) -> None:
        """Read the base; fine-tunes are read when they are needed."""
        self._domain = domain
        self._store = store
        self._seed = seed
        base = domain.base()
        self.base: Weights = {name: base.tensor(name, torch.float32) for name in base.tensors}
        self._kept: tuple[str, Mapping[str, Tensor]] | None = None

    def fine_tune(self, task: str) -> dict[str, Tensor]:
        """θ_k."""
        checkpoint = self._domain.fine_tune(task, self._seed)
        return {name: checkpoint.tensor(name, torch.float32) for name in self.base}

    def weights(self, row: Row, scale: float) -> dict[str, Tensor]:
        """θ₀ + λ (merged − θ₀), rounded to bfloat16 as backbones are stored."""
        direction = self._direction(row)
        moved = {name: self.base[name] + scale * vector for name, vector in direction.items()}
        return {name: moved.get(name, tensor).to(torch.bfloat16).float() for name, tensor in self.base.items()}

    def _direction(self, row: Row) -> Mapping[str, Tensor]:
        """Merged − θ₀ with λ = 1, if it is not zero; made once and kept on disk."""
        if row.method is None:
            return {}
        if self._kept is None or self._kept[0] != row.name:
            key = [self._domain.name, self._domain.settings, row.method, dict(row.parameters), self._seed]
            digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
            path = self._store.folder("backbones") / f"{digest}.safetensors"
            if not path.is_file():
                self._store.check_time()
                found = self._searched(row) if row.method == "frank_wolfe" else self._merged(row)
                with replaced(path) as partial:
                    save_file({name: tensor.contiguous() for name, tensor in found.items()}, partial)
            self._kept = (row.name, load_file(path))
        return self._kept[1]

    def _merged(self, row: Row) -> dict[str, Tensor]:
        assert row.method is not None
        method = find_method(row.method)
        parameters: dict[str, Any] = dict(row.parameters)
        if row.spatial:
            parameters["exclude"] = self._domain.aside
        bound = method.bind(method.parameters.model_validate(parameters), {})
        fine_tunes = {task: self._domain.fine_tune(task, self._seed) for task in self._domain.tasks}
        found = {}
        for name, origin in self.base.items():
            vectors = TaskVectors(list(fine_tunes), task_vector_reader(fine_tunes, name, origin))
            difference = bound(name, origin, vectors) - origin
            if torch.count_nonzero(difference):
                found[name] = difference
        return found

    def _searched(self, row: Row) -> dict[str, Tensor]:
        domain, seed = self._domain, self._seed
        fine_tunes = {task: domain.fine_tune(task, seed) for task in domain.tasks}
        config = frank_wolfe_config(row.parameters["variant"], domain.aside, frozen=domain.name != "lm")
        outcome = merge_frank_wolfe(domain.base(), fine_tunes, domain.objective(domain.tasks, seed), config)
        return {name: tensor - self.base[name] for name, tensor in outcome.tensors.items()}


def task_vector_reader(fine_tunes: Mapping[str, Checkpoint], name: str, origin: Tensor) -> Callable[[str], Tensor]:
    """Reads a task's vector of one tensor."""
    return lambda task: fine_tunes[task].tensor(name, torch.float32) - origin
