"""The inner product of each vertex with a gradient: one number for each vertex and tensor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.frank_wolfe.config import Score
from merge.frank_wolfe.vertices import Layout, Vertices

CHUNK = 1 << 20
"""Elements taken to float64 at once."""


@dataclass(frozen=True)
class Scores:
    """Vertices against a gradient g at a point θ.

    Attributes:
        inner: [V, G] float64, ⟨g, v − θ⟩. It differs from ⟨g, v⟩ by the same number for every vertex, without the
            cancellation: vertices are nearly equal.
        ranking: [V, G] float64, what the linear minimisation oracle minimises.
        moves: [G] bool, whether the group's gradient is other than zero.
    """

    inner: Tensor
    ranking: Tensor
    moves: Tensor

    def chosen(self, count: int = 1) -> Tensor:
        """The linear minimisation oracle: each group's `count` best vertices, of equal ones the first.

        Returns:
            [V, G] bool; nothing is chosen for a group whose gradient is zero.
        """
        best = self.ranking.argsort(dim=0, stable=True)[:count]
        return torch.zeros_like(self.ranking, dtype=torch.bool).scatter_(0, best, True) & self.moves


def score_vertices(
    vertices: Vertices,
    layout: Layout,
    gradient: Mapping[str, Tensor],
    point: Mapping[str, Tensor],
    score: Score = "inner_product",
    wanted: Tensor | None = None,
) -> Scores:
    """Stream the vertices past a gradient.

    Semantics: inner[v, p] = ⟨g_p, v_p − θ_p⟩; ranking is `inner`, or with `cosine` ⟨g_p, v_p⟩ / (‖g_p‖ ‖v_p‖), taken as
    0 if a norm is 0; both are summed over the tensors p of a group, in float64.

    Args:
        vertices: read one tensor at a time.
        layout: which tensors, and their groups.
        gradient: g, float32.
        point: θ, float32.
        score: the ranking.
        wanted: [V] bool; other vertices are not read and get 0. None: all.

    Raises:
        ValueError: the gradient of a tensor is missing or not finite.
    """
    size = (len(vertices.names), len(layout.tensors))
    inner, cosine = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    moves = torch.zeros(size[1], dtype=torch.float64)
    for p, name in enumerate(layout.tensors):
        if name not in gradient:
            raise ValueError(f"the objective has no gradient of {name}: exclude it from the merge")
        g = gradient[name]
        square = dot(g, g)
        if not math.isfinite(square):
            raise ValueError(f"the gradient of {name} is not finite: the merge cannot continue")
        if square == 0:
            continue
        moves[p] = 1
        for v, vertex in enumerate(vertices.names):
            if wanted is None or wanted[v]:
                tensor = vertices.read(vertex, name)
                inner[v, p] = dot(g, tensor - point[name])
                if score == "cosine":
                    norms = math.sqrt(square * dot(tensor, tensor))
                    cosine[v, p] = dot(g, tensor) / norms if norms else 0.0
    grouped = layout.grouped(inner)
    return Scores(grouped, layout.grouped(cosine) if score == "cosine" else grouped, layout.grouped(moves) > 0)


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product of two tensors of one shape, accumulated in float64."""
    pairs = zip(torch.split(a.reshape(-1), CHUNK), torch.split(b.reshape(-1), CHUNK), strict=True)
    return sum(float(torch.dot(x.double(), y.double())) for x, y in pairs)
