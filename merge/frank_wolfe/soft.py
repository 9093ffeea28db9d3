"""The soft variant: several vertices a step, their coefficients fitted to the loss."""

import torch
from torch import Tensor

from merge.frank_wolfe.config import FrankWolfeConfig
from merge.frank_wolfe.hard import frank_wolfe_gap, move_towards
from merge.frank_wolfe.search import Search, Step
from merge.frank_wolfe.simplex import project_onto_simplex

SUFFICIENT = 1e-4
"""Share of the predicted decrease that a step must reach (Armijo's rule)."""

HALVINGS = 10
"""Most times that a step is halved before the search gives up."""


def soft_step(search: Search, t: int, config: FrankWolfeConfig) -> Step:
    """Move to the best combination of the point and several vertices.

    Args:
        search: stands at θ_t; afterwards at θ_{t+1}.
        t: the step's number, from 0.
        config: score, tolerance and the soft variant's parameters.
    """
    settings = config.soft_settings
    if settings.vertices == "per_task":
        losses, found = zip(*(search.scores(task, config.score) for task in search.objective.tasks), strict=True)
        active = torch.stack([scores.chosen() for scores in found]).any(0)
        # The whole loss is the mean of the tasks', so its inner products are the means of theirs.
        loss, inner = sum(losses) / len(losses), torch.stack([scores.inner for scores in found]).mean(0)
    else:
        loss, scores = search.scores(score=config.score)
        active, inner = scores.chosen(settings.vertices), scores.inner
    gap = frank_wolfe_gap(inner)
    if settings.steps == 0:
        return move_towards(search, t, config, loss, inner, active)
    if gap <= config.tolerance or not active.any():
        return Step(t, loss, gap, search.counted(active), 0.0, finished=True)
    before = search.coefficients
    fit_coefficients(search, active, loss, inner, settings.steps)
    moved = float((search.coefficients - before).abs().sum(0).mean()) / 2
    return Step(t, loss, gap, search.counted(active), moved, finished=moved == 0)


def fit_coefficients(search: Search, active: Tensor, loss: float, inner: Tensor, steps: int) -> None:
    """Move to the combination of the vertices in use and the active ones that has the least loss.

    Semantics: min over c of l(Σ_v c_v v), c in the simplex over {v: c_v > 0 at θ_t} ∪ active, for each group; by
    projected gradient from θ_t with Armijo's rule along the projection, so the loss never rises.

    The paper's update θ_t + Σ_j λ_j (s_j − θ_t) is among these combinations. Taking θ_t apart into its own vertices, as
    fully corrective Frank-Wolfe does, costs nothing here and lets a vertex that was a mistake go.

    Nothing but scalars is kept: points are written again from their coefficients, and the derivatives by c are inner
    products of vertices, streamed again, with the gradient there.

    Args:
        search: stands at θ_t; afterwards at the outcome.
        active: [V, G] bool, the chosen vertices of each group.
        loss: l(θ_t).
        inner: [V, G], ⟨∇l(θ_t), v − θ_t⟩.
        steps: most steps.
    """
    current = search.coefficients
    allowed = (current > 0) | active
    for step in range(steps):
        if step:
            inner = search.scores(wanted=allowed.any(1))[1].inner
        search.rate = 2 * search.rate or _first_rate(inner, allowed)
        for _ in range(HALVINGS):
            trial = project_onto_simplex(current - search.rate * inner, allowed)
            expected = float((inner * (trial - current)).sum())
            value = search.loss_at(trial) if expected < 0 else loss
            if value <= loss + SUFFICIENT * expected:
                break
            search.rate /= 2
        else:
            break
        if expected >= 0:  # the projection does not descend: this is the minimum
            break
        current, loss = trial, value
    search.move(current)


def _first_rate(inner: Tensor, allowed: Tensor) -> float:
    """A step length with which the steepest group could move from one vertex to another."""
    highest, lowest = (inner.masked_fill(~allowed, end) for end in (-torch.inf, torch.inf))
    steepest = float((highest.amax(0) - lowest.amin(0)).max())
    return 1 / steepest if steepest else 1.0
