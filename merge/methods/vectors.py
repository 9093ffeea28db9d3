"""What every method takes: the task vectors of one tensor, and parameters that may differ from task to task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod
from types import MappingProxyType

import torch
from torch import Tensor

EMBEDDINGS = ("*embed_tokens*", "*lm_head*")
"""Tensors with a row a token: their rows have no order, so methods that treat a matrix as a whole pass them by."""


@dataclass(frozen=True)
class PerTask:
    """A number for each task: its own, else the common one."""

    common: float
    own: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __getitem__(self, task: str) -> float:
        return self.own.get(task, self.common)


ONE = PerTask(1.0)

BLOCK = 1 << 17
"""Elements of a piece: half a MB in float32."""

ROWS = 1 << 22
"""Elements of the rows of a tensor that are in memory at a time, if it need not be there as a whole: 17 MB in
float32. The C library maps larger blocks afresh each time, and half of the time then went into clearing their pages."""


@dataclass(frozen=True)
class Factors:
    """A 2-D task vector as a product, which is how a LoRA stores it: τ = left @ right.

    Attributes:
        left: [N, R].
        right: [R, K]. R is 0 if the LoRA leaves the tensor alone.
    """

    left: Tensor
    right: Tensor


class TaskVectors:
    """The task vectors of one tensor, read one at a time and as often as a method iterates.

    A vector must not be written to, and is valid only until the next one is read.

    Tasks come in the order of their names, so that a merge does not depend, to the last bit, on the recipe's order.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        read: Callable[[str], Tensor],
        add: Callable[[str, Tensor, float], object] | None = None,
        factors: Callable[[str], Factors | None] | None = None,
        stored: Callable[[str], torch.dtype] | None = None,
        first_row: int = 0,
    ) -> None:
        """Take the tasks' names and what reads a task's vector.

        Args:
            tasks: their names.
            read: a task's vector.
            add: (task, total, weight) adds weight · τ to a total, to the last bit as `read` and an addition would, but
                perhaps faster; None: that is what is done.
            factors: a task's vector as a product, None for a task that is not stored as one; None: no task is.
            stored: what a task's weights were rounded to; None: float64, which says that they are exact.
            first_row: number of the vectors' first row, if they are only some rows of a tensor.
        """
        self.tasks = tuple(sorted(tasks))
        self._read = read
        self._add = add or (lambda task, total, weight: total.add_(read(task), alpha=weight))
        self._factors = factors or (lambda _: None)
        self._stored = stored or (lambda _: torch.float64)
        self.first_row = first_row

    def factors(self, task: str) -> Factors | None:
        """A task's vector as a product; None if it is only known as a whole."""
        return self._factors(task)

    def stored(self, task: str) -> torch.dtype:
        """What a task's weights were rounded to."""
        return self._stored(task)

    def read(self, task: str) -> Tensor:
        """One task's vector."""
        return self._read(task)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((task, self._read(task)) for task in self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def add_to(self, total: Tensor, weight: PerTask | Mapping[str, float]) -> Tensor:
        """Add Σ_i weight_i τ_i to a tensor, which is returned; of a LoRA its factors, at the cost of their rank."""
        for task in self.tasks:
            factors = self._factors(task)
            if factors is None:
                self._add(task, total, weight[task])
            else:
                total.addmm_(factors.left, factors.right, alpha=weight[task])
        return total

    def map(self, change: Callable[[str, Tensor], Tensor]) -> "TaskVectors":
        """The same tasks, each vector passed through `change`(task, vector) when it is read; none has factors then."""
        return TaskVectors(self.tasks, lambda task: change(task, self._read(task)), first_row=self.first_row)


def weighted_sum(like: Tensor, vectors: TaskVectors, weight: PerTask | Mapping[str, float]) -> Tensor:
    """Σ_i weight_i τ_i, of `like`'s shape and dtype."""
    return vectors.add_to(torch.zeros_like(like), weight)


def blocks(size: int, most: int = BLOCK) -> Iterator[slice]:
    """Cut `size` elements into pieces of at most `most`, whose intermediate results stay in the processor's cache."""
    return (slice(start, min(start + most, size)) for start in range(0, size, most))


def row_blocks(shape: Sequence[int], most: int = ROWS) -> list[slice | None]:
    """Cut a tensor of this shape into blocks of rows of at most `most` elements; [None], the whole, if it has no more.

    A block has one row at least.
    """
    size = prod(shape)
    if size <= most or not shape:
        return [None]
    step = max(1, most // (size // shape[0]))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def is_matrix(name: str, tensor: Tensor, exclude: Sequence[str]) -> bool:
    """Whether a tensor is a 2-D weight whose name matches none of the shell-style patterns `exclude`."""
    return tensor.ndim == 2 and not is_excluded(name, exclude)


def is_excluded(name: str, exclude: Sequence[str]) -> bool:
    """Whether a name matches one of the shell-style patterns `exclude`."""
    return any(fnmatchcase(name, pattern) for pattern in exclude)
