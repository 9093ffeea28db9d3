"""A pool: the base, some fine-tunes of one kind, and what merging and routing them needs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.quality.domain import Requests
from benchmarks.quality.store import Store
from benchmarks.zoo.real.bench import Bench, Part
from merge.bundle.digest import file_digest
from merge.checkpoint import Checkpoint
from merge.experts import CalibrationConfig
from merge.frank_wolfe import LanguageModelLoss, ObjectiveConfig, language_model_loss
from merge.methods.vectors import EMBEDDINGS
from serve.demo.zoo.real.tasks import out_of_scope

ROUTED = 64
"""Training prompts a task that the router learns from."""

FOREIGN = 100
"""Requests of no task that are put to it."""

SEARCHED = 8
"""Prompts a task that Frank-Wolfe looks at."""


class Pool:
    """Fine-tunes that are merged together. See `Mergeable`.

    Attributes:
        kind: `lora` or `full`.
        tasks: the names of all its fine-tunes.
        known: those that are scored and routed to, each named by its task.
        bench: scores them.
        settings: digests of the fine-tunes, and how many prompts experts are cut with.
    """

    name = "chat"
    aside = EMBEDDINGS

    def __init__(
        self,
        kind: str,
        fine_tunes: Mapping[str, Checkpoint],
        bench: Bench,
        store: Store,
        others: Mapping[str, Checkpoint] | None = None,
    ) -> None:
        """Take the fine-tunes by task, and by name others that are only merged."""
        self.kind, self.bench, self.known = kind, bench, tuple(fine_tunes)
        self._fine_tunes, self._store = {**fine_tunes, **(others or {})}, store
        self.tasks = tuple(self._fine_tunes)
        digests = {name: _digest(checkpoint) for name, checkpoint in self._fine_tunes.items()}
        self.settings: Mapping[str, Any] = {"kind": kind, "pool": digests, "calibration": bench.prompts}

    def base(self) -> Checkpoint:
        """θ₀."""
        return self.bench.base

    def fine_tune(self, task: str, seed: int) -> Checkpoint:  # noqa: ARG002 - each seed has its pool
        """θ_k."""
        return self._fine_tunes[task]

    def objective(self, tasks: Sequence[str], seed: int) -> LanguageModelLoss:
        """Cross-entropy of the right answers in the chat template, the mean of the tasks' logarithms."""
        path = self._store.folder("chat") / f"search-{seed}.jsonl"
        lines = [
            json.dumps({"task": task, "prompt": example.prompt, "answer": example.answer})
            for task in tasks
            if task in self.known
            for example in self.bench.requests(task, "calibration", SEARCHED)
        ]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        config = ObjectiveConfig(
            tasks=tuple(task for task in tasks if task in self.known), per_task=SEARCHED, scale="log", batch_size=4
        )
        return language_model_loss(self.base(), {}, CalibrationConfig(file=path, per_task=SEARCHED), config)


class RoutedPool:
    """The requests of a pool's tasks. See `Routable`."""

    name = "chat"

    def __init__(self, pool: Pool) -> None:
        """Take the pool, whose bench drew the requests."""
        self._tasks, self._bench = pool.known, pool.bench
        self.settings: Mapping[str, Any] = {"tasks": list(pool.known), "requests": pool.bench.count}

    def requests(self, seed: int) -> Requests:  # noqa: ARG002 - the bench's own seed drew them
        """Prompts for the router; foreign ones belong to no task."""
        train = {task: self._prompts(task, "calibration", ROUTED) for task in self._tasks}
        test = {task: self._prompts(task, "test", None) for task in self._tasks}
        return Requests(train, test, out_of_scope()[:FOREIGN])

    def _prompts(self, task: str, part: Part, count: int | None) -> list[str]:
        return [example.prompt for example in self._bench.requests(task, part, count)]


def _digest(checkpoint: Checkpoint) -> str:
    """The digest of all files in a fine-tune's directory."""
    files = sorted(path for path in checkpoint.path.iterdir() if path.suffix in {".safetensors", ".json"})
    return hashlib.sha256("".join(file_digest(path) for path in files).encode()).hexdigest()[:16]
