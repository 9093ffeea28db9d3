"""How far to go towards a vertex."""

import math
from collections.abc import Callable
from typing import Literal

EVALUATIONS = 8
"""Most points that a line search tries."""


def scheduled_step(rule: Literal["classic", "scaled"], t: int, step_size: float) -> float:
    """γ_t, counted from t = 0.

    Semantics: 2 / (t + 2), and with `scaled` that times `step_size`
    """
    return 2 / (t + 2) * (step_size if rule == "scaled" else 1.0)


def line_search(loss: Callable[[float], float], start: float, slope: float) -> float:
    """The best step in [0, 1], by fitting parabolas.

    Each parabola goes through the start with its slope and through the last point tried; the next point is its minimum.
    On a quadratic loss the second point is exact.

    Args:
        loss: l(θ + γ d) of γ.
        start: l(θ).
        slope: ⟨∇l(θ), d⟩.

    Returns:
        The γ tried whose loss was lowest; 0 if none was lower than the start's, or the slope does not descend.
    """
    best, lowest = 0.0, start
    step = 1.0
    if slope >= 0:
        return best
    for _ in range(EVALUATIONS):
        value = loss(step)
        if value < lowest:
            best, lowest = step, value
        rise = value - start - slope * step
        if not math.isfinite(rise):
            step /= 10
            continue
        minimum = -slope * step * step / (2 * rise) if rise > 0 else 2 * step
        following = min(1.0, max(minimum, step / 10))
        if abs(following - step) <= 0.05 * step:
            break
        step = following
    return best
