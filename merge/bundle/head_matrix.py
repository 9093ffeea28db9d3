"""The scores of all heads for a text: a weighted sum of few rows of a large matrix.

A text has some hundreds of features of tens of thousands, so the matrix is stored by features: the weights of each for
all experts are together. Up to `EXACT` experts they are float32. Above, they are 8-bit integers with a scale and an
offset for each feature, a quarter of the memory that a decision reads; a score changes by about a thousandth of the
largest weight.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EXACT = 1024
"""Most experts whose weights are kept in float32."""

COLUMNS = 2048
"""Experts whose weights are brought to the order of features at once."""


class HeadMatrix:
    """Semantics: scores = values @ weight.T[places] + bias."""

    def __init__(self, weight: NDArray[np.floating], bias: NDArray[np.float32]):
        """Take weight [E, D] and bias [E]."""
        self.experts = len(bias)
        self._bias = torch.from_numpy(np.ascontiguousarray(bias, dtype=np.float32))
        self._eight_bit = self.experts > EXACT
        self._weight = _eight_bit(weight) if self._eight_bit else _by_features(weight)

    def scores(self, places: NDArray[np.intp], values: NDArray[np.float32]) -> Tensor:
        """The scores of one text, given by its features that are not 0: [E] float32."""
        rows, factors = torch.from_numpy(places), torch.from_numpy(values)
        if not self._eight_bit:
            return factors @ self._weight.index_select(0, rows) + self._bias
        if len(places) == 0:
            return self._bias
        start = torch.zeros(1, dtype=torch.int64)
        found: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            self._weight, rows, start, False, 0, False, factors, None, False
        )
        return found[0] + self._bias


def _by_features(weight: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(weight.T, dtype=np.float32))


def _eight_bit(weight: NDArray[np.floating]) -> Tensor:
    """[D, E + 8] uint8: round((w - least) / scale), then scale and least in float32, as torch's operator reads them."""
    experts, features = weight.shape
    least, most = weight.min(axis=0).astype(np.float32), weight.max(axis=0).astype(np.float32)
    scale = np.maximum(most - least, np.float32(1e-8)) / np.float32(255)
    out = torch.empty(features, experts + 8, dtype=torch.uint8)
    for start in range(0, experts, COLUMNS):
        part = _by_features(weight[start : start + COLUMNS])
        part.sub_(torch.from_numpy(least)[:, None]).div_(torch.from_numpy(scale)[:, None])
        out[:, start : start + part.shape[1]] = part.round_().clamp_(0, 255).to(torch.uint8)
    out[:, experts:] = torch.from_numpy(np.stack([scale, least], axis=1)).view(torch.uint8)
    return out
