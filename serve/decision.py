"""What the router decided for one prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CLOSE = 0.5
"""Share of the best expert's probability from which another one is close to it."""

Session = Literal["kept", "switched"]
Abstention = Literal["none", "unsure"]


@dataclass(frozen=True, eq=False)
class Decision:
    """Which expert, how sure.

    Attributes:
        expert: the chosen expert, or None: the backbone alone.
        confidence: probability of what was chosen, 0 to 1; for None, of there being no fitting expert.
        names: the experts that the router knows.
        chances: [E] float64, each one's probability.
        mix: (expert, gate) of what runs: the chosen expert by 1, or several by gates whose sum is 1.
        session: "kept" if an earlier turn's expert continues although the message alone would not have chosen it,
            "switched" if the message moved the chat to another expert; None otherwise.
    """

    expert: str | None
    confidence: float
    names: tuple[str, ...]
    chances: NDArray[np.float64]
    mix: tuple[tuple[str, float], ...] = ()
    session: Session | None = None

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """Each expert's probability."""
        return dict(zip(self.names, self.chances.tolist(), strict=True))

    @property
    def near_tie(self) -> bool:
        """Whether the second expert is close to the best."""
        if self.expert is None or len(self.chances) < 2:
            return False
        second, best = np.partition(self.chances, -2)[-2:]
        return bool(second >= CLOSE * best)

    @property
    def abstention(self) -> Abstention | None:
        """Why no expert was chosen: "none" fits, or the router was "unsure" of the best."""
        if self.expert is not None:
            return None
        return "unsure" if len(self.chances) and self.chances.max() > 1.0 - self.chances.sum() else "none"


def mixed(names: tuple[str, ...], chances: NDArray[np.float64], top_k: int) -> tuple[tuple[str, float], ...]:
    """The best expert and up to `top_k` - 1 that are close to it, with gates.

    Semantics:  gate_i = p_i / Σ_j p_j over those experts (the router's weights in FREE-Merging, arXiv 2411.16815)
    """
    order = np.argsort(-chances, kind="stable")[:top_k] if top_k > 1 else np.array([chances.argmax()])
    close = [int(i) for i in order if chances[i] >= CLOSE * chances[order[0]]]
    total = float(chances[close].sum())
    return tuple((names[i], float(chances[i]) / total) for i in close)
