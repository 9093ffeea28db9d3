"""NuSLERP: spherical interpolation of two task vectors (Shoemake, SIGGRAPH 1985), weights free of their scale."""

import torch
from torch import Tensor

from merge.methods.registry import method
from merge.methods.vectors import ONE, PerTask, TaskVectors

LEAST_SINE = 1e-8
"""Vectors of a smaller sine are interpolated linearly."""


@method("nuslerp")
def nuslerp(
    _name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Interpolate two task vectors along the arc between them.

    Semantics: t = w_2 / (w_1 + w_2), 1/2 if the weights sum to 0; cos φ = ⟨τ_1, τ_2⟩ / (‖τ_1‖ ‖τ_2‖);
    θ₀ + λ (sin((1 − t) φ) τ_1 + sin(t φ) τ_2) / sin φ. Vectors of one direction, or 0, are interpolated linearly.

    Args:
        _name: the tensor's name; all tensors are treated alike.
        base: θ₀, any shape.
        vectors: τ_1 and τ_2, in the order of their names.
        weight: w_i.
        nuslerp_flatten: one angle for a tensor; else one for each row of it.
        nuslerp_row_wise: one angle for each column instead, without `nuslerp_flatten`.
        lambda_: λ.

    Raises:
        ValueError: there are not two models.
    """
    if len(vectors) != 2:
        raise ValueError(f"nuslerp interpolates two models; the recipe has {len(vectors)}")
    first, second = vectors.tasks
    total = weight[first] + weight[second]
    t = 0.5 if abs(total) < 1e-6 else weight[second] / total
    one, other = vectors.read(first).clone(), vectors.read(second).clone()
    shape = base.shape
    if nuslerp_flatten or base.ndim < 2:
        one, other = one.view(1, -1), other.view(1, -1)
    dim = 0 if nuslerp_row_wise and not nuslerp_flatten and base.ndim > 1 else -1
    lengths = torch.linalg.vector_norm(one, dim=dim, keepdim=True) * torch.linalg.vector_norm(
        other, dim=dim, keepdim=True
    )
    cosine = (one * other).sum(dim, keepdim=True) / lengths.clamp_min(torch.finfo(base.dtype).tiny)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    straight = (sine < LEAST_SINE) | (lengths == 0)
    divisor = torch.where(straight, 1.0, sine)
    a = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / divisor)
    b = torch.where(straight, t, (t * angle).sin() / divisor)
    return (a * one + b * other).view(shape).mul_(lambda_).add_(base)
