"""Settings and the definition that the paths are held to."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.sampling.weights import UNIT

UNIFORM = (0.0, 0.1, 0.25, 0.4999, 0.5, 0.75, 0.9, 0.999, 1 - 2**-53)

FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 1e-6},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 2000},
    {"top_k": 2000, "top_p": 0.75},
    {"min_p": 0.5},
    {"min_p": 1.0},
    {"top_k": 2500, "top_p": 0.875, "min_p": 0.25},
)


def by_sorting(
    weight: NDArray[np.int32], uniform: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> int:
    """The definition: sort, cut, cumulate."""
    filtered = 0 < top_k < len(weight) or top_p < 1.0 or min_p > 0.0
    order = np.argsort(-weight, kind="stable") if filtered else np.arange(len(weight))
    values = weight[order].astype(np.int64)
    if 0 < top_k < len(weight):
        values[top_k:] = 0
    before = values.cumsum() - values
    kept = values * (values >= min_p * UNIT) * (before < top_p * values.sum())
    cumulated = kept.cumsum()
    target = min(int(uniform * int(cumulated[-1])), int(cumulated[-1]) - 1)
    return int(order[np.searchsorted(cumulated, target, side="right")])
