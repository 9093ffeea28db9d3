"""The hard variant: one vertex a step."""

import torch
from torch import Tensor

from merge.frank_wolfe.config import USUAL_STEP_SIZE, FrankWolfeConfig
from merge.frank_wolfe.search import Search, Step
from merge.frank_wolfe.step import line_search, scheduled_step


def hard_step(search: Search, t: int, config: FrankWolfeConfig) -> Step:
    """Move towards each group's best vertex.

    Args:
        search: stands at θ_t; afterwards at θ_{t+1}.
        t: the step's number, from 0.
        config: score, step rule and tolerance.
    """
    loss, scores = search.scores(score=config.score)
    return move_towards(search, t, config, loss, scores.inner, scores.chosen())


def move_towards(search: Search, t: int, config: FrankWolfeConfig, loss: float, inner: Tensor, active: Tensor) -> Step:
    """Go a step of the rule's length towards the middle of each group's active vertices.

    Args:
        search: stands at θ_t; afterwards at θ_{t+1}.
        t: the step's number, from 0.
        config: step rule and tolerance.
        loss: l(θ_t).
        inner: [V, G], ⟨∇l(θ_t), v − θ_t⟩.
        active: [V, G] bool; a group without any stays.
    """
    gap, chosen = frank_wolfe_gap(inner), search.counted(active)
    if gap <= config.tolerance or not chosen:
        return Step(t, loss, gap, chosen, 0.0, finished=True)
    here, moves = search.coefficients, active.any(0)
    target = torch.where(moves, active / active.sum(0).clamp_min(1), here)

    def towards(step: float) -> Tensor:
        return here + step * (target - here) if step < 1 else target

    rule = config.step_rule or "line_search"
    if rule == "line_search":
        slope = float((inner * (target - here)).sum())
        step = line_search(lambda step: search.loss_at(towards(step)), loss, slope)
    else:
        step = scheduled_step(rule, t, config.step_size or USUAL_STEP_SIZE)
    search.move(towards(step))
    return Step(t, loss, gap, chosen, step * float(moves.double().mean()), finished=step == 0)


def frank_wolfe_gap(inner: Tensor) -> float:
    """The gap Σ_groups max_v ⟨∇l(θ), θ − v⟩, for a convex loss at least l(θ) − min l.

    Args:
        inner: [V, G], ⟨∇l(θ), v − θ⟩.
    """
    return float(-inner.amin(0).sum())
