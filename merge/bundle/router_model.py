"""The router's model: what training and serving must compute alike.

Semantics:  f = features(text)  [D]
            z_i = (weight_i · f + bias_i - offset) / temperature
            p_i = exp(z_i) / (1 + Σ_j exp(z_j))          (the 1 is "none": the backbone alone)

Each row of `weight` is one expert's own head, so that one can be added without touching the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from merge.bundle.head_matrix import HeadMatrix
from merge.bundle.text_features import TextFeatures


@dataclass(frozen=True)
class RouterModel:
    """A trained router.

    Attributes:
        names: the experts, one a row of `weight`.
        weight: [E, D] float32 or float16.
        bias: [E] float32.
        offset, temperature: calibration of the scores to probabilities.
        threshold: if the best expert's probability is lower, the backbone answers alone.
        featurizer: text to features.
        top_k: most experts that answer a prompt together if their probabilities are close to each other.
    """

    names: tuple[str, ...]
    weight: NDArray[np.floating]
    bias: NDArray[np.float32]
    offset: float
    temperature: float
    threshold: float
    featurizer: TextFeatures
    top_k: int = 1
    _heads: HeadMatrix = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_heads", HeadMatrix(self.weight, self.bias))

    def probabilities(self, text: str) -> NDArray[np.float64]:
        """[E], each expert's probability; what is missing to 1 is "none"."""
        result: NDArray[np.float64] = self.probabilities_of([text])[0]
        return result

    def probabilities_of(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[n, E], those of several texts."""
        out = np.empty((len(texts), len(self.names)))
        for row, (places, values) in zip(out, self.featurizer.rows(texts), strict=True):
            logits = (self._heads.scores(places, values).to(torch.float64) - self.offset) / self.temperature
            row[:] = torch.softmax(torch.cat([logits, logits.new_zeros(1)]), dim=0)[:-1].numpy()
        return out
