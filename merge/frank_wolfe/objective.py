"""What Frank-Wolfe minimises."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Objective(Protocol):
    """A differentiable loss of a model's parameters: the mean of one loss for each target task."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The target tasks' names."""
        ...

    def loss(self, parameters: Mapping[str, Tensor]) -> float:
        """The mean of the tasks' losses."""
        ...

    def loss_and_gradient(
        self, parameters: Mapping[str, Tensor], task: str | None = None
    ) -> tuple[float, Mapping[str, Tensor]]:
        """One task's loss (None: their mean) and its gradient.

        Args:
            parameters: float32, by name; they are not modified.
            task: one of `tasks`.

        Returns:
            The loss, and a gradient for each of the parameters. The caller drops it before it calls again, so that no
            more than one exists.
        """
        ...
