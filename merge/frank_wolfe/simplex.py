"""Euclidean projection onto the simplex, by sorting (Held et al., 1974; Duchi et al., ICML 2008)."""

import torch
from torch import Tensor


def project_onto_simplex(point: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The nearest point with coefficients of at least 0 that sum to 1, for each column.

    Semantics: argmin_x ‖x − point‖², x ≥ 0, Σ_v x[v, g] = 1, x[v, g] = 0 where not allowed

    Args:
        point: [V, G].
        allowed: [V, G] bool, at least one entry of each column set; None: all.

    Returns:
        [V, G], of the point's dtype.
    """
    inside = point if allowed is None else point.masked_fill(~allowed, -torch.inf)
    descending = inside.sort(0, descending=True).values
    finite = descending.masked_fill(descending == -torch.inf, 0.0)
    count = torch.arange(1, point.shape[0] + 1, dtype=point.dtype)[:, None]
    threshold = (finite.cumsum(0) - 1) / count
    support = (descending > threshold).sum(0, keepdim=True)
    result: Tensor = (inside - threshold.gather(0, support - 1)).clamp_min(0)
    return result
