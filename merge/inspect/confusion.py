"""The router's confusion matrix, each prompt judged by a router that has not seen its wording."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from merge.router import RouterConfig, read_foreign, train_router
from merge.router.phrasings import assign_folds
from merge.router.quality import CurvePoint, coverage_curve
from merge.wording import counted

NONE = "none"


@dataclass(frozen=True)
class Confusion:
    """How prompts were routed.

    Attributes:
        tasks: rows, the task of a prompt.
        choices: columns, the router's choice; the last is "none", the backbone alone.
        counts: prompts.
        folds: routers trained.
        curve: coverage and accuracy over the threshold.
    """

    tasks: tuple[str, ...]
    choices: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    folds: int
    curve: tuple[CurvePoint, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of the prompts that the router sends to their own expert."""
        right = sum(row[i] for i, row in enumerate(self.counts))
        return right / max(1, sum(map(sum, self.counts)))


def cross_validated(
    prompts: Mapping[str, Sequence[str]], config: RouterConfig, folds: int = 4, backbone: Path | None = None
) -> Confusion:
    """Train a router for each fold of the prompts, prompts worded alike in one fold, and route the fold by it.

    Raises:
        ValueError: a task has too few different prompts, or the router cannot be trained as `config` says.
    """
    tasks = tuple(sorted(prompts))
    unique = {task: list(dict.fromkeys(prompts[task])) for task in tasks}
    for task in tasks:
        if len(unique[task]) < 2 * folds:
            raise ValueError(
                f"task {task!r} has {counted(len(unique[task]), 'prompt')}; {folds} folds need {2 * folds}"
            )
    foreign = [] if config.foreign is None else read_foreign(config.foreign)
    fold_of = {task: assign_folds(unique[task], folds) for task in tasks}
    best_chances: list[float] = []
    right: list[bool] = []
    counts = [[0] * (len(tasks) + 1) for _ in tasks]
    for fold in range(folds):
        seen = {t: [p for p, f in zip(unique[t], fold_of[t], strict=True) if f != fold] for t in tasks}
        router = train_router(seen, config, foreign, backbone)
        for row, task in enumerate(tasks):
            asked = [prompt for prompt, place in zip(unique[task], fold_of[task], strict=True) if place == fold]
            for chances in router.probabilities_of(asked):
                best = int(np.argmax(chances))
                best_chances.append(float(chances[best]))
                right.append(tasks[best] == task)
                counts[row][best if chances[best] >= router.threshold else len(tasks)] += 1
    return Confusion(
        tasks, (*tasks, NONE), tuple(map(tuple, counts)), folds, coverage_curve(np.array(best_chances), np.array(right))
    )
