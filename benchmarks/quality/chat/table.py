"""Every cell of a pool's table: measured once, stored, and read again."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.quality.backbones import Backbones
from benchmarks.quality.chat.pool import Pool, RoutedPool
from benchmarks.quality.routing import Routing, measure_routing
from benchmarks.quality.rows import Row
from benchmarks.quality.store import Store
from merge.check.general import MOST_DIVERGENCE, GeneralReference, general_reference
from merge.checkpoint import Checkpoint, copy_settings, open_checkpoint

VALIDATED = 12
"""Requests a task that λ is chosen on."""

VERSION = 1
"""Increase it if a change of the code gives other results with the same settings."""

Marks = Mapping[str, Sequence[float]]
"""The metric of each request, by task."""


@dataclass(frozen=True)
class Column:
    """A kind of expert.

    Attributes:
        form: as in a recipe.
        budget: bytes, in per cent of the backbone's.
        prompts: whether it is cut with prompts.
    """

    form: str
    budget: float
    prompts: bool


@dataclass(frozen=True)
class Cut:
    """One task's expert, measured.

    Attributes:
        marks: of each request, with the expert named.
        bytes: of the expert, as a fraction of the backbone's.
        divergence: mean KL to the fine-tune on the calibration prompts, nats a token; None without prompts.
    """

    marks: Sequence[float]
    bytes: float
    divergence: float | None


class ChatTable:
    """The cells of one pool."""

    def __init__(
        self, pool: Pool, store: Store, say: Callable[[str], None] = lambda _: None, halvings: int = 0
    ) -> None:
        """Take the pool, the store of results, a function that reports each new one, and how often λ may be halved."""
        self.pool, self._halvings = pool, halvings
        self._store, self._say = store, say
        bench = pool.bench
        self._common = {"domain": "chat", "version": VERSION, "seed": bench.seed, **pool.settings}
        self._asked = {**self._common, "requests": bench.count}
        self._stack = ExitStack()
        self._reference = cache(partial(_general_reference, pool))
        self._merged: tuple[str, Backbones] | None = None
        self._written: tuple[tuple[str, float], Checkpoint] | None = None

    def individual(self, tasks: Sequence[str]) -> Marks:
        """The scores of the fine-tunes."""
        bench, pool = self.pool.bench, self.pool
        return {
            task: self._marks(
                {"row": "fine-tunes"}, task, "fine-tune", partial(bench.marks, pool.fine_tune(task, 0), task)
            )
            for task in tasks
        }

    def backbone(self, row: Row, scale: float, tasks: Sequence[str]) -> Marks:
        """The scores of a backbone alone."""
        return {
            task: self._marks(self._key(row, scale), task, f"{row.name} alone", partial(self._alone, row, scale, task))
            for task in tasks
        }

    def general(self, row: Row, scale: float) -> dict[str, float] | None:
        """KL to the base on general questions, share of its right answers kept, and the perplexity over the base's."""

        def compute() -> dict[str, float] | None:
            reference = self._reference()
            if reference is None:
                return None
            found = reference.compare(self._checkpoint(row, scale))
            self._say(f"{row.name} λ {scale:g}: {found.summary()}")
            names = ("divergence", "kept", "perplexity_ratio")
            return {name: round(getattr(found, name), 6) for name in names}

        if row.method is None:
            return {"divergence": 0.0, "kept": 1.0, "perplexity_ratio": 1.0}  # the base itself
        key = {**self._common, **self._key(row, scale), "general": 2}
        found: dict[str, float] | None = self._store.result(key, compute)
        return found

    def scale(self, row: Row) -> float:
        """λ: of those that keep the base's general abilities, the best on validation requests.

        A backbone keeps them if its KL to the base on general questions is at most 0.1 nats a token, the limit of
        the warning in `overtone merge`. The KL grows with λ, so a larger λ is not tried after one that is over the
        limit. If the smallest is over it, it is halved until one is not, at most `halvings` times.
        """
        if len(row.scales) == 1:
            return row.scales[0]
        kept = []
        for scale in sorted(row.scales):
            if not _keeps(self.general(row, scale)):
                break
            kept.append(scale)
        if kept:
            scores = {scale: self._validated(row, scale) for scale in kept}
            return max(scores, key=lambda scale: scores[scale])
        smallest = min(row.scales)
        for _ in range(self._halvings):
            smallest /= 2
            if _keeps(self.general(row, smallest)):
                break
        return smallest

    def expert(self, row: Row, scale: float, column: Column, task: str) -> Cut:
        """The scores of a backbone with a task's own expert."""

        def compute() -> dict[str, Any]:
            backbone = self._checkpoint(row, scale)
            settings = {"form": column.form, "budget": column.budget / 100}
            expert, size, divergence = self.pool.bench.cut(
                task, self.pool.fine_tune(task, 0), backbone, settings, column.prompts
            )
            marks = self.pool.bench.marks(backbone, task, expert)
            how = f"{column.form} {column.budget:g} % {'with' if column.prompts else 'without'} prompts"
            self._say(f"{row.name} λ {scale:g}, {how}, {task}: {fmean(marks):.3f} at {size:.2%}")
            return asdict(Cut(marks, size, divergence))

        distill = {"distill": self.pool.bench.distill} if column.prompts else {}
        key = {**self._asked, **self._key(row, scale), **asdict(column), **distill, "task": task}
        return Cut(**self._store.result(key, compute))

    def routing(self) -> Routing:
        """What a router that was trained on the pool's prompts does with the requests."""
        found = measure_routing(RoutedPool(self.pool), self._store, self.pool.bench.seed)
        assert found is not None
        return found

    def close(self) -> None:
        """Remove the merged models."""
        self._stack.close()
        self._merged = self._written = None

    def _alone(self, row: Row, scale: float, task: str) -> list[float]:
        return self.pool.bench.marks(self._checkpoint(row, scale), task)

    def _validated(self, row: Row, scale: float) -> float:
        bench = self.pool.bench

        def marks(task: str) -> list[float]:
            return bench.marks(self._checkpoint(row, scale), task, None, "validation", VALIDATED)

        key = {**self._common, **self._key(row, scale), "validated": VALIDATED}
        found = [fmean(self._store.result({**key, "task": task}, partial(marks, task))) for task in self.pool.known]
        self._say(f"{row.name} λ {scale:g}: {fmean(found):.3f} on validation requests")
        return fmean(found)

    def _marks(self, key: Mapping[str, Any], task: str, label: str, compute: Callable[[], list[float]]) -> list[float]:
        def measured() -> list[float]:
            marks = compute()
            self._say(f"{label}, {task}: {fmean(marks):.3f}")
            return marks

        found: list[float] = self._store.result({**self._asked, **key, "task": task}, measured)
        return found

    @staticmethod
    def _key(row: Row, scale: float) -> dict[str, Any]:
        return {"row": [row.method, dict(row.parameters)], "scale": scale}

    def _checkpoint(self, row: Row, scale: float) -> Checkpoint:
        """The backbone, in a directory that is there until another one is asked for."""
        if row.method is None:
            return self.pool.base()
        if self._written is not None and self._written[0] == (row.name, scale):
            return self._written[1]
        if self._merged is None or self._merged[0] != row.name:
            self.close()
            scratch = Store(Path(self._stack.enter_context(tempfile.TemporaryDirectory())))
            self._say(f"{row.name}: merging {len(self.pool.tasks)} fine-tunes")
            self._merged = (row.name, Backbones(self.pool, scratch, self.pool.bench.seed))
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        weights = self._merged[1].weights(row, scale)
        save_file(
            {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}, directory / "model.safetensors"
        )
        copy_settings(self.pool.base().path, directory)
        self._written = ((row.name, scale), open_checkpoint(directory))
        return self._written[1]


def _general_reference(pool: Pool) -> GeneralReference | None:
    return general_reference(pool.base())


def _keeps(general: Mapping[str, float] | None) -> bool:
    return general is None or general["divergence"] <= MOST_DIVERGENCE
