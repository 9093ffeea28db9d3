"""The Riemannian (Karcher) mean of the models' directions on the sphere (Karcher, 1977)."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merge.methods.registry import method
from merge.methods.vectors import TaskVectors


@method("karcher")
def karcher(
    _name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    max_iter: Annotated[int, Field(ge=1)] = 10,
    tol: Annotated[float, Field(gt=0)] = 1e-5,
) -> Tensor:
    """Average the fine-tunes' directions on the sphere, and their norms; the base serves only to read them against.

    Semantics: u_i = θ_i / ‖θ_i‖; c ← (Σ_i u_i / T) normalised, then c ← cos‖g‖ c + sin‖g‖ g / ‖g‖ with
    g = Σ_i log_c(u_i) / T, log_c(u) = φ (u − cos φ c) / sin φ and cos φ = ⟨c, u⟩, until ‖g‖ < tol or `max_iter` times;
    c Σ_i ‖θ_i‖ / T. Models that are 0 in this tensor give no direction.

    Args:
        _name: the tensor's name; all tensors are treated alike.
        base: θ₀, any shape.
        vectors: τ_i; read at most `max_iter` + 2 times.
        max_iter: iterations, at most.
        tol: norms of g and of tensors that count as 0.
    """
    if not any(bool(vector.any()) for _, vector in vectors):
        return base.clone()
    norms = {task: float(torch.linalg.vector_norm(vector + base)) for task, vector in vectors}
    counted = [task for task in vectors.tasks if norms[task] > tol]
    if not counted:
        return torch.zeros_like(base)
    mean = torch.zeros_like(base)
    for task in counted:
        mean.add_(vectors.read(task) + base, alpha=1 / norms[task])
    length = float(torch.linalg.vector_norm(mean))
    if length < tol:  # opposite directions, of which none is nearer than the others
        mean = (vectors.read(counted[0]) + base) / norms[counted[0]]
    else:
        mean.div_(length)
    for _ in range(max_iter if len(counted) > 1 else 0):
        tangent = torch.zeros_like(base)
        for task in counted:
            unit = (vectors.read(task) + base).div_(norms[task])
            cosine = float((mean.double() * unit).sum().clamp(-1.0, 1.0))
            angle = torch.tensor(cosine, dtype=torch.float64).arccos()
            if angle > tol:
                tangent.add_(unit.sub_(mean, alpha=cosine), alpha=float(angle / angle.sin()) / len(counted))
        step = torch.linalg.vector_norm(tangent.double())
        if step < tol:
            break
        mean.mul_(float(step.cos())).add_(tangent, alpha=float(step.sin() / step))
        mean.div_(torch.linalg.vector_norm(mean))
    return mean.mul_(sum(norms.values()) / len(norms))
