"""TSV-M: task singular vectors (Gargiulo et al., CVPR 2025, arXiv 2412.00081)."""

import torch
from torch import Tensor

from merge.methods.registry import method, where_excluded
from merge.methods.singular import of_task, smallest
from merge.methods.vectors import EMBEDDINGS, ONE, PerTask, TaskVectors, is_matrix, weighted_sum


@method("tsv_m", by_rows=where_excluded)
def tsv_m(
    name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    lambda_: float = 1.0,
    exclude: tuple[str, ...] = EMBEDDINGS,
) -> Tensor:
    """Keep each task's leading singular vectors, make those of different tasks orthogonal, add them up.

    Semantics: τ_i ≈ U_i S_i V_iᵀ with the ⌊min(N, K) / T⌋ largest of its singular values (at least 1, and none that is
    0 or a rounding error); U = polar([U_1 … U_T]), V = polar([V_1 … V_T]); θ₀ + λ U diag(w_1 S_1 … w_T S_T) Vᵀ.
    Tensors that are not 2-D weights get θ₀ + λ mean_i(w_i τ_i).

    Args:
        name: the tensor's name.
        base: θ₀, any shape.
        vectors: τ_i.
        weight: w_i.
        lambda_: λ.
        exclude: patterns of 2-D tensors that are averaged instead.
    """
    if not is_matrix(name, base, exclude):
        return weighted_sum(base, vectors, weight).mul_(lambda_ / len(vectors)).add_(base)
    rank = max(1, min(base.shape) // len(vectors))
    left, right, values = [], [], []
    for task in vectors.tasks:
        found = of_task(base, vectors, task).leading(rank)
        left.append(found.u)
        right.append(found.vh.T)
        values.append(found.s * weight[task])
    u, v = polar(torch.cat(left, 1)), polar(torch.cat(right, 1))
    return ((u * torch.cat(values)) @ v.T).mul_(lambda_).add_(base)


def polar(matrix: Tensor) -> Tensor:
    """The matrix with orthonormal columns (or rows, if it is wide) that is nearest to a matrix.

    Semantics: P Qᵀ for A = P Σ Qᵀ, without the directions in which A is 0 or a rounding error: any would do there, and
    another processor would take another.
    """
    p, s, qh = torch.linalg.svd(matrix, full_matrices=False)
    kept = int((s > smallest(s)).sum())
    nearest: Tensor = p[:, :kept] @ qh[:kept]
    return nearest
