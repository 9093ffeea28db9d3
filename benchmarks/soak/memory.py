"""Whether memory grows."""

from collections.abc import Sequence

import numpy as np

_WARM_UP = 1 / 2
"""Of the samples, from the beginning: caches and allocators fill there."""


def slope_mb_per_minute(samples: Sequence[tuple[float, float]]) -> float:
    """Slope of the least-squares line through the samples after the warm-up.

    Args:
        samples: (seconds, bytes), in order.

    Returns:
        10⁶ bytes a minute; 0 where there are fewer than three samples.
    """
    later = samples[int(len(samples) * _WARM_UP) :]
    if len(later) < 3:
        return 0.0
    seconds, held = np.asarray(later, dtype=np.float64).T
    slope, _ = np.polyfit(seconds - seconds[0], held, 1)
    return float(slope) * 60 / 1e6
