"""KnOTS: TIES in a space that all LoRAs share (Stoica et al., ICLR 2025, arXiv 2410.19735)."""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from merge.methods.registry import method
from merge.methods.singular import rounding, significant, smallest
from merge.methods.ties import ties
from merge.methods.vectors import EMBEDDINGS, ONE, PerTask, TaskVectors, is_matrix

USUAL_DENSITY = PerTask(0.2)
"""That of TIES."""


@method("knots")
def knots(
    name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    density: Annotated[PerTask, Field(gt=0, le=1)] = USUAL_DENSITY,
    lambda_: float = 1.0,
    exclude: tuple[str, ...] = EMBEDDINGS,
) -> Tensor:
    """Align the task vectors by one decomposition of all, and merge what is left of each by TIES.

    Semantics: [τ_1 … τ_T] = U Σ [V_1ᵀ … V_Tᵀ]; θ₀ + λ U Σ TIES(V_1, …, V_T)ᵀ for 2-D weights, θ₀ + λ TIES(τ_1, …, τ_T)
    for everything else. Singular values that are 0 or rounding errors are left out, so the result has at most the rank
    of all task vectors together. LoRAs are decomposed from their factors.

    Args:
        name: the tensor's name.
        base: θ₀, any shape.
        vectors: τ_i; iterated twice.
        weight: w_i, those of TIES.
        density: fraction of the entries of each V_i (or τ_i) that TIES keeps.
        lambda_: λ.
        exclude: patterns of 2-D tensors that TIES merges without a decomposition.
    """
    if not is_matrix(name, base, exclude):
        return ties(name, base, vectors, weight=weight, density=density, lambda_=lambda_)
    u, s, aligned = _shared(base, vectors)
    nothing = base.new_zeros(len(s), base.shape[1])
    merged = ties(name, nothing, TaskVectors(vectors.tasks, aligned), weight=weight, density=density)
    return ((u * s) @ merged).mul_(lambda_).add_(base)


def _shared(base: Tensor, vectors: TaskVectors) -> tuple[Tensor, Tensor, Callable[[str], Tensor]]:
    """U [N, R], Σ [R], and V_iᵀ [R, K] of a task."""
    found = {task: vectors.factors(task) for task in vectors.tasks}
    products = {task: item for task, item in found.items() if item is not None}
    if len(products) == len(found) and sum(item.left.shape[1] for item in products.values()) < base.shape[0]:
        lefts = [item.left for item in products.values()]
        q, r = torch.linalg.qr(torch.cat(lefts, 1))
        blocks = dict(zip(products, r.split([left.shape[1] for left in lefts], 1), strict=True))
        coordinates = {task: blocks[task] @ item.right for task, item in products.items()}
        u, s = _left(coordinates.__getitem__, vectors, q.shape[1], base)
        kept = int((s > smallest(s)).sum())
        u, s = u[:, :kept], s[:kept]
        return q @ u, s, lambda task: (u.T @ coordinates[task]) / s[:, None]
    u, s = _left(vectors.read, vectors, base.shape[0], base)
    noise = sum(rounding(base, vectors.stored(task)) for task in found) / len(found)
    kept = significant(s, (base.shape[0], base.shape[1] * len(found)), noise)
    u, s = u[:, :kept], s[:kept]
    return u, s, lambda task: (u.T @ vectors.read(task)) / s[:, None]


def _left(read: Callable[[str], Tensor], vectors: TaskVectors, rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and values of matrices side by side, of which one is in memory at a time."""
    triangle = like.new_zeros(0, rows)
    for task in vectors.tasks:
        triangle = torch.linalg.qr(torch.cat([triangle, read(task).T]), mode="r").R
    _, s, uh = torch.linalg.svd(triangle, full_matrices=False)
    return uh.T, s
