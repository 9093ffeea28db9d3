"""Every cell of a domain's table: measured once, stored, and put together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from benchmarks.quality.backbones import Backbones
from benchmarks.quality.domain import Domain, Residual, Split, Weights
from benchmarks.quality.experts import FACTORS, Storage, backbone_bytes, data_free, expert_bytes, with_expert
from benchmarks.quality.rows import ROWS, Row
from benchmarks.quality.store import Store

Kind = Literal["data-free", "calibrated"]
INDIVIDUAL = "individual"
VERSION = 1
"""Increase it if a change of the code gives other results with the same settings."""


@dataclass(frozen=True)
class Cut:
    """A kind of expert, as a column of the table.

    Attributes:
        kind: how entries and values are found.
        density: share of a row's entries.
        storage: of the values.
    """

    kind: Kind
    density: float
    storage: Storage = "bfloat16"


@dataclass(frozen=True)
class Cell:
    """What was measured for one seed.

    Attributes:
        right: for each task a string of 1 (right) and 0, in the order of the test examples.
        bytes: of an expert, the mean over the tasks; 0 without.
    """

    right: dict[str, str]
    bytes: float

    def accuracy(self) -> dict[str, float]:
        """By task."""
        return {task: marks.count("1") / len(marks) for task, marks in self.right.items()}


class Table:
    """The cells of one domain."""

    def __init__(self, domain: Domain, store: Store, say: Callable[[str], None] = lambda _: None) -> None:
        """Take the domain, the store of results, and what receives each new one."""
        self._domain = domain
        self._store = store
        self._say = say
        self._backbones: Backbones | None = None
        self._seed = -1

    def individual(self, seed: int) -> Cell:
        """The fine-tunes, each on its own task."""
        return self._cell(
            {"row": INDIVIDUAL, "seed": seed},
            lambda task: (self._of(seed).fine_tune(task), 0),
            seed,
        )

    def backbone(self, row: Row, seed: int) -> Cell:
        """A backbone alone, with the λ that was chosen."""
        scale = self.scale(row)
        return self._cell(
            {"row": [row.method, dict(row.parameters)], "scale": scale, "seed": seed},
            lambda _: (self._of(seed).weights(row, scale), 0),
            seed,
        )

    def with_experts(self, row: Row, cut: Cut, seed: int, scale: float | None = None) -> Cell:
        """A backbone with each task's own expert."""
        chosen = self.scale(row) if scale is None else scale
        factor = self.factor() if cut.kind == "data-free" else 0.0
        key = {"row": [row.method, dict(row.parameters)], "scale": chosen, "seed": seed}
        key |= {"kind": cut.kind, "density": cut.density, "storage": cut.storage, "factor": factor}
        return self._cell(key, lambda task: self._expert(row, chosen, cut, factor, task, seed), seed)

    def scale(self, row: Row) -> float:
        """λ: the best on validation data, with the first seed's fine-tunes; chosen for the backbone alone."""
        if len(row.scales) == 1:
            return row.scales[0]
        found = {scale: self._validated(row, scale, None) for scale in row.scales}
        return max(found, key=lambda scale: found[scale])

    def factor(self) -> float:
        """μ as a multiple of its closed form: the best on validation data for experts of 1 % beside task arithmetic."""
        row = next(row for row in ROWS if row.method == "task_arithmetic")
        scale = self.scale(row)
        found = {factor: self._validated(row, scale, factor) for factor in FACTORS}
        return max(found, key=lambda factor: found[factor])

    def sizes(self) -> tuple[int, int]:
        """Bytes of a backbone, and of its part that experts have entries of."""
        return backbone_bytes(self._of(0).base, self._domain)

    def _validated(self, row: Row, scale: float, factor: float | None) -> float:
        key: dict[str, Any] = {"row": [row.method, dict(row.parameters)], "scale": scale, "seed": 0}
        key |= {"factor": factor, "split": "validation"}

        def weights(task: str) -> tuple[Weights, int]:
            if factor is None:
                return self._of(0).weights(row, scale), 0
            return self._expert(row, scale, Cut("data-free", 0.01), factor, task, 0)

        accuracy = self._cell(key, weights, 0, "validation").accuracy()
        return sum(accuracy.values()) / len(accuracy)

    def _expert(self, row: Row, scale: float, cut: Cut, factor: float, task: str, seed: int) -> tuple[Weights, int]:
        made = self._of(seed)
        backbone = made.weights(row, scale)
        expert: Residual
        if cut.kind == "data-free":
            expert = data_free(self._domain, backbone, made.base, made.fine_tune(task), cut.density, factor)
        else:
            expert = self._domain.calibrated(backbone, task, seed, cut.density)
        return with_expert(backbone, expert, cut.storage), expert_bytes(expert, cut.storage)

    def _cell(
        self, key: dict[str, Any], weights: Callable[[str], tuple[Weights, int]], seed: int, split: Split = "test"
    ) -> Cell:
        """Measure task by task, so that what is stored when the time is over is small pieces."""
        common = {"domain": self._domain.name, "settings": self._domain.settings, "version": VERSION, **key}

        def measure(task: str) -> dict[str, Any]:
            found, size = weights(task)
            marks = self._domain.answers(found, task, seed, split)
            result = {"right": "".join("1" if mark else "0" for mark in marks), "bytes": size}
            self._say(f"{key} {task}: {sum(marks) / len(marks):.3f}")
            return result

        parts = {
            task: self._store.result(common | {"task": task}, partial(measure, task)) for task in self._domain.tasks
        }
        sizes: Sequence[int] = [part["bytes"] for part in parts.values()]
        return Cell({task: part["right"] for task, part in parts.items()}, sum(sizes) / len(sizes))

    def _of(self, seed: int) -> Backbones:
        if self._backbones is None or self._seed != seed:
            self._backbones, self._seed = Backbones(self._domain, self._store, seed), seed
        return self._backbones
