"""Where the search stands, and what a step of it reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from merge.frank_wolfe.config import Score
from merge.frank_wolfe.objective import Objective
from merge.frank_wolfe.scores import Scores, score_vertices
from merge.frank_wolfe.vertices import Layout, Vertices, combine


@dataclass(frozen=True)
class Step:
    """What a step did.

    Attributes:
        number: t, from 0.
        loss: l(θ_t), before the step.
        gap: the Frank-Wolfe gap at θ_t.
        chosen: the vertices chosen, with the number of groups that chose each.
        moved: how much of θ_t was replaced by other vertices; the mean over the groups.
        finished: no further step improves the loss.
    """

    number: int
    loss: float
    gap: float
    chosen: Mapping[str, int]
    moved: float
    finished: bool


@dataclass
class Search:
    """Where the search stands.

    Attributes:
        vertices: V of them.
        layout: which tensors move, in G groups.
        objective: the loss.
        coefficients: [V, G] float64, the current point.
        point: the same as tensors; the only model in memory, beside a gradient.
        rate: the last step length of the projected gradient; 0 before the first.
    """

    vertices: Vertices
    layout: Layout
    objective: Objective
    coefficients: Tensor
    point: dict[str, Tensor]
    rate: float = 0.0

    @classmethod
    def start(
        cls, vertices: Vertices, layout: Layout, objective: Objective, shapes: Mapping[str, tuple[int, ...]]
    ) -> Self:
        """Stand at the starting point, the first vertex."""
        coefficients = torch.zeros(len(vertices.names), layout.groups, dtype=torch.float64)
        coefficients[0] = 1
        point = {name: torch.empty(shape, device=vertices.device) for name, shape in shapes.items()}
        search = cls(vertices, layout, objective, coefficients, point)
        search.move(coefficients)
        return search

    def move(self, coefficients: Tensor) -> None:
        """Go to a point."""
        self.coefficients = coefficients
        combine(self.vertices, self.layout, coefficients, self.point)

    def loss_at(self, coefficients: Tensor) -> float:
        """Go to a point and return the loss there."""
        self.move(coefficients)
        return self.objective.loss(self.point)

    def scores(
        self, task: str | None = None, score: Score = "inner_product", wanted: Tensor | None = None
    ) -> tuple[float, Scores]:
        """The loss here, and the vertices against its gradient, which is dropped."""
        loss, gradient = self.objective.loss_and_gradient(self.point, task)
        return loss, score_vertices(self.vertices, self.layout, gradient, self.point, score, wanted)

    def counted(self, active: Tensor) -> dict[str, int]:
        """The vertices of a [V, G] mask, with the number of groups of each."""
        counts = active.sum(1).tolist()
        return {vertex: count for vertex, count in zip(self.vertices.names, counts, strict=True) if count}
