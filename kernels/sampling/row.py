"""How one row's token is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """The settings of one row.

    Attributes:
        temperature: divides the logits; 0 takes the highest logit, ties going to the lowest token.
        top_k: candidates are the k most likely tokens; 0: all.
        top_p: candidates are the most likely tokens up to this share of the mass that top-k leaves.
        min_p: candidates are tokens at least this fraction as likely as the most likely one.
        uniform: place in the candidates' mass at which the token is drawn, in [0, 1).
        repetition: divides positive and multiplies negative logits of the `seen` tokens.
        presence: subtracted from the logits of tokens that were generated.
        frequency: subtracted from them once for each time.
        seen: [n] int64, the distinct tokens that are penalised; None: none.
        times: [n] float32, how often each of them was generated; 0 for a token of the prompt alone.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    seen: Tensor | None = None
    times: Tensor | None = None

    @property
    def scale(self) -> float:
        """log2(e) / temperature, rounded to fp32 when it is used; 0 if the highest logit is taken."""
        return math.log2(math.e) / self.temperature if self.temperature else 0.0
