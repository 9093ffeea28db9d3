"""How good a router is on labelled prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 10
POINTS = 21
NONE = "none"


@dataclass(frozen=True)
class CurvePoint:
    """The share of the experts' prompts that reach a threshold, and the share of these that are routed correctly."""

    threshold: float
    coverage: float
    accuracy: float | None


@dataclass(frozen=True)
class RoutingQuality:
    """What a router does with labelled prompts.

    Attributes:
        prompts, foreign: how many belong to an expert, and how many to none.
        accuracy: share of the prompts whose most probable expert is theirs, whatever the threshold.
        routed: share of the prompts for which its probability also reaches the threshold.
        coverage: share of the prompts that reach it.
        foreign_routed: share of the foreign prompts that reach it; None without any.
        ece: expected calibration error of the best probability over ten bins, on the experts' prompts.
        auroc: how well that probability tells the experts' prompts from foreign ones; None without any.
        tasks, choices: rows and columns of `confusion`: what prompts belong to, what was chosen; the last is "none".
        confusion: how many.
        curve: coverage and accuracy over the threshold.
    """

    prompts: int
    foreign: int
    accuracy: float
    routed: float
    coverage: float
    foreign_routed: float | None
    ece: float
    auroc: float | None
    tasks: tuple[str, ...]
    choices: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    curve: tuple[CurvePoint, ...]


def routing_quality(
    names: Sequence[str], chances: NDArray[np.float64], labels: Sequence[str | None], threshold: float
) -> RoutingQuality:
    """Judge a router.

    Args:
        names: the experts, E ≥ 1.
        chances: [n, E] each one's probability for each prompt.
        labels: the expert that each prompt belongs to; None: none.
        threshold: probability from which the best expert is chosen.

    Raises:
        ValueError: no prompt belongs to an expert.
    """
    places = {name: number for number, name in enumerate(names)}
    tasks = (*names, *sorted({label for label in labels if label is not None and label not in places}))
    own = np.array([label is not None for label in labels])
    if not own.any():
        raise ValueError("no prompt belongs to an expert")
    best, choice = chances.max(axis=1), chances.argmax(axis=1)
    right = np.array([places.get(label or "", -1) for label in labels]) == choice
    reached = best >= threshold
    counts = np.zeros((len(tasks) + 1, len(names) + 1), dtype=int)
    row: dict[str | None, int] = {task: number for number, task in enumerate(tasks)}
    row[None] = len(tasks)
    for label, chosen, sure in zip(labels, choice, reached, strict=True):
        counts[row[label], chosen if sure else len(names)] += 1
    strangers = best[~own]
    return RoutingQuality(
        prompts=int(own.sum()),
        foreign=len(strangers),
        accuracy=float(right[own].mean()),
        routed=float((right & reached)[own].mean()),
        coverage=float(reached[own].mean()),
        foreign_routed=float((strangers >= threshold).mean()) if len(strangers) else None,
        ece=calibration_error(best[own].tolist(), right[own].tolist()),
        auroc=area_under_curve(best[own].tolist(), strangers.tolist()) if len(strangers) else None,
        tasks=(*tasks, NONE) if len(strangers) else tasks,
        choices=(*names, NONE),
        confusion=tuple(tuple(map(int, line)) for line in (counts if len(strangers) else counts[:-1])),
        curve=coverage_curve(best[own], right[own]),
    )


def coverage_curve(best: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[CurvePoint, ...]:
    """Coverage and accuracy at thresholds from 0 to 1."""
    points = []
    for threshold in np.linspace(0.0, 1.0, POINTS).tolist():
        kept = best >= threshold
        points.append(
            CurvePoint(round(threshold, 4), float(kept.mean()), float(right[kept].mean()) if kept.any() else None)
        )
    return tuple(points)


def calibration_error(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error: Σ over bins of (share of the bin) · |mean confidence − share right|."""
    chance, hit = np.array(confidence), np.array(right, dtype=float)
    places = np.minimum((chance * BINS).astype(int), BINS - 1)
    error = 0.0
    for place in range(BINS):
        inside = places == place
        if inside.any():
            error += float(inside.mean()) * abs(float(chance[inside].mean()) - float(hit[inside].mean()))
    return error


def area_under_curve(inside: Sequence[float], outside: Sequence[float]) -> float:
    """Chance that an in-domain value is above an out-of-domain one; ties count one half."""
    a, b = np.array(inside)[:, None], np.array(outside)[None, :]
    return float((a > b).mean() + 0.5 * (a == b).mean())
