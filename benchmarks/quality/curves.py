"""Frank-Wolfe's scaling curves, with task arithmetic beside it: what more models in the pool do to the target tasks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.quality.backbones import task_vector_reader
from benchmarks.quality.domain import Domain, Weights
from benchmarks.quality.rows import SUMS, frank_wolfe_config
from benchmarks.quality.store import Store
from merge.frank_wolfe import merge_frank_wolfe
from merge.methods import TaskVectors, find_method

TARGETS = 4
IRRELEVANT = (0, 4, 8, 16)
PUBLISHED = 0.3
"""Task arithmetic's coefficient in its paper; beside it the best of `SUMS` on validation data is shown."""


def scaling_curves(domain: Domain, store: Store, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure both curves.

    Irrelevant: four target tasks and their fine-tunes, and a growing number of fine-tunes of other tasks. Relevant: all
    tasks are targets, and a growing number of their fine-tunes is there.

    Returns:
        For each curve its points: models, and mean accuracy over the targets of each method.
    """
    targets, others = domain.tasks[:TARGETS], (*domain.tasks[TARGETS:], *domain.pool)
    counts = [count for count in IRRELEVANT if count <= len(others)]
    steps = sorted({1, 2, TARGETS, (TARGETS + len(domain.tasks)) // 2, len(domain.tasks)})
    point = _Points(domain, store, seed, say)
    return {
        "irrelevant": [{"extra": n, **point.measure((*targets, *others[:n]), targets)} for n in counts],
        "relevant": [{"models": n, **point.measure(domain.tasks[:n], domain.tasks)} for n in steps],
    }


class _Points:
    def __init__(self, domain: Domain, store: Store, seed: int, say: Callable[[str], None]) -> None:
        self._domain = domain
        self._store = store
        self._seed = seed
        self._say = say
        base = domain.base()
        self._base = {name: base.tensor(name, torch.float32) for name in base.tensors}

    def measure(self, pool: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
        key = {"domain": self._domain.name, "settings": self._domain.settings, "curve": 2, "seed": self._seed}
        key |= {"pool": list(pool), "targets": list(targets)}
        methods: dict[str, Callable[[], float]] = {
            f"task arithmetic {PUBLISHED}": lambda: self._mean(self._sum(pool, PUBLISHED), targets, "test"),
            "task arithmetic, λ by validation": lambda: self._best_sum(pool, targets),
            "Frank-Wolfe hard": lambda: self._search("hard", pool, targets),
            "Frank-Wolfe soft": lambda: self._search("soft", pool, targets),
        }
        found: dict[str, float] = {}
        for name, compute in methods.items():
            found[name] = self._store.result(key | {"method": name}, compute)
            self._say(f"{len(pool)} models, {name}: {found[name]:.3f}")
        return found

    def _mean(self, weights: Weights, targets: Sequence[str], split: str) -> float:
        total = 0.0
        for task in targets:
            marks = self._domain.answers(weights, task, self._seed, "test" if split == "test" else "validation")
            total += sum(marks) / len(marks)
        return total / len(targets)

    def _best_sum(self, pool: Sequence[str], targets: Sequence[str]) -> float:
        found = {scale: self._mean(self._sum(pool, scale), targets, "validation") for scale in SUMS}
        return self._mean(self._sum(pool, max(found, key=lambda scale: found[scale])), targets, "test")

    def _sum(self, pool: Sequence[str], scale: float) -> Weights:
        method = find_method("task_arithmetic")
        bound = method.bind(method.parameters.model_validate({"weight": scale}), {})
        fine_tunes = {task: self._domain.fine_tune(task, self._seed) for task in pool}
        weights = {}
        for name, origin in self._base.items():
            vectors = TaskVectors(list(pool), task_vector_reader(fine_tunes, name, origin))
            weights[name] = bound(name, origin, vectors)
        return weights

    def _search(self, variant: str, pool: Sequence[str], targets: Sequence[str]) -> float:
        domain = self._domain
        fine_tunes = {task: domain.fine_tune(task, self._seed) for task in pool}
        config = frank_wolfe_config(variant, domain.aside, frozen=domain.name != "lm")
        outcome = merge_frank_wolfe(domain.base(), fine_tunes, domain.objective(targets, self._seed), config)
        return self._mean({**self._base, **outcome.tensors}, targets, "test")
