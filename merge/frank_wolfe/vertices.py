"""The corners of the hull, read from disk one tensor at a time, and points of it as tables of coefficients."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from merge.checkpoint import Checkpoint
from merge.frank_wolfe.config import Granularity
from merge.methods import BoundMethod
from merge.task_vectors import task_vectors

INITIAL = "<initial>"
"""The starting point's name among the vertices; no fine-tune can be called so."""


class Vertices:
    """The starting point and the fine-tunes (or what a method makes of each), in the order of their names.

    Attributes:
        names: `INITIAL`, then the fine-tunes' names, sorted.
        device: the device that their tensors are read to.
    """

    def __init__(
        self,
        base: Checkpoint,
        fine_tunes: Mapping[str, Checkpoint],
        initial: Checkpoint,
        local_update: BoundMethod | None = None,
    ) -> None:
        self._base = base
        self._fine_tunes = fine_tunes
        self._initial = initial
        self._local_update = local_update
        self.names = (INITIAL, *sorted(fine_tunes))
        self.device = base.device

    def read(self, vertex: str, name: str) -> Tensor:
        """Read one tensor of one vertex, float32. It must not be written to."""
        if vertex == INITIAL:
            return self._initial.tensor(name, torch.float32)
        tensor = self._fine_tunes[vertex].tensor(name, torch.float32)
        if self._local_update is None:
            return tensor
        origin = self._base.tensor(name, torch.float32)
        alone = {vertex: self._fine_tunes[vertex]}
        vectors = task_vectors(name, self._base, alone, origin, read=lambda _: tensor - origin)
        return self._local_update(name, origin, vectors)


class Layout:
    """Which tensors share one choice of vertices: all of them, or each for itself.

    Attributes:
        tensors: the tensors that move, sorted.
        groups: number of choices, G.
    """

    def __init__(self, tensors: Sequence[str], granularity: Granularity) -> None:
        self.tensors = tuple(sorted(tensors))
        self._alone = granularity == "layer"
        self.groups = len(self.tensors) if self._alone else 1

    def column(self, tensor: int) -> int:
        """The group of the tensor of that number."""
        return tensor if self._alone else 0

    def grouped(self, table: Tensor) -> Tensor:
        """Sum a table over the tensors of each group: [..., tensors] to [..., G]."""
        return table if self._alone else table.sum(-1, keepdim=True)


def combine(vertices: Vertices, layout: Layout, coefficients: Tensor, into: Mapping[str, Tensor]) -> None:
    """Write a point of the hull.

    Semantics: into[p] = Σ_v coefficients[v, group of p] · v[p], summed in the order of the vertices' names

    Any point is a table of a few numbers, so none but the current one is ever held; and what it is does not depend on
    the way that led to it.

    Args:
        vertices: V of them.
        layout: which tensors, and their groups.
        coefficients: [V, G] float64. Vertices with 0 are not read.
        into: float32 tensors, overwritten.
    """
    for number, name in enumerate(layout.tensors):
        out = into[name].zero_()
        for vertex, coefficient in zip(vertices.names, coefficients[:, layout.column(number)].tolist(), strict=True):
            if coefficient:
                out.add_(vertices.read(vertex, name), alpha=coefficient)
