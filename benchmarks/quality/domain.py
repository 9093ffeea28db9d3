"""What a domain is: a base, its fine-tunes, and how well given weights do a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from merge.checkpoint import Checkpoint
from merge.frank_wolfe import Objective

Split = Literal["validation", "test"]
Weights = Mapping[str, Tensor]
"""A model's parameters, float32, by name."""


@dataclass(frozen=True)
class Residual:
    """One task's expert, before it is stored.

    Attributes:
        index: [N, k] int64 columns of each 2-D weight.
        value: [N, k] float32, what is added there.
        dense: what is added to each 1-D parameter.
    """

    index: Mapping[str, Tensor]
    value: Mapping[str, Tensor]
    dense: Mapping[str, Tensor]


@dataclass(frozen=True)
class Requests:
    """Prompts as people would write them, for the router.

    Attributes:
        train: by task.
        test: by task, in wordings that are not in `train`; in the order of `Domain.answers` on the test split.
        foreign: prompts of no task.
    """

    train: Mapping[str, Sequence[str]]
    test: Mapping[str, Sequence[str]]
    foreign: Sequence[str]


class Mergeable(Protocol):
    """What merging needs of a domain."""

    @property
    def name(self) -> str:
        """`lm`, `text`, `vision` or `chat`."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        ...

    @property
    def aside(self) -> tuple[str, ...]:
        """Shell-style patterns of embeddings: methods average them, experts leave them."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What fine-tunes and examples depend on beside the seed, as JSON; part of every result's key."""
        ...

    def base(self) -> Checkpoint:
        """θ₀."""
        ...

    def fine_tune(self, task: str, seed: int) -> Checkpoint:
        """θ_k; trained on the first call."""
        ...

    def objective(self, tasks: Sequence[str], seed: int) -> Objective:
        """The mean of the tasks' losses on examples that are neither validated nor tested on."""
        ...


class Routable(Protocol):
    """What measuring a router needs of a domain."""

    @property
    def name(self) -> str:
        """The same as `Mergeable.name`."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the requests depend on beside the seed."""
        ...

    def requests(self, seed: int) -> Requests | None:
        """Prompts for the router; None if the inputs are not text."""
        ...


class Domain(Mergeable, Routable, Protocol):
    """A domain. Its fine-tunes are of `tasks` or `pool`."""

    @property
    def pool(self) -> tuple[str, ...]:
        """Tasks beside `tasks`, whose fine-tunes only Frank-Wolfe's curves use."""
        ...

    @property
    def calibrated_as(self) -> str:
        """One line on how `calibrated` cuts."""
        ...

    def answers(self, weights: Weights, task: str, seed: int, split: Split) -> list[bool]:
        """Whether each example is answered right, in the examples' own order."""
        ...

    def calibrated(self, backbone: Weights, task: str, seed: int, density: float) -> Residual:
        """An expert cut with calibration examples (never test's or validation's)."""
        ...

    def head_bytes(self) -> float:
        """Bytes in bfloat16 of a task's own classifier, the mean over the tasks; every model needs it as it is."""
        ...
