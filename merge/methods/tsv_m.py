"""TSV-M: task singular vectors (Gargiulo et al., CVPR 2025, arXiv 2412.00081)."""

import torch
from torch import Tensor

from merge.methods.registry import method
from merge.methods.vectors import EMBEDDINGS, ONE, PerTask, TaskVectors, is_matrix, weighted_sum


@method("tsv_m")
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

    Semantics: τ_i ≈ U_i S_i V_iᵀ with the ⌊min(N, K) / T⌋ largest of its singular values (at least 1);
    U = polar([U_1 … U_T]), V = polar([V_1 … V_T]), polar(A) = P Qᵀ for A = P Σ Qᵀ; θ₀ + λ U diag(w_1 S_1 … w_T S_T) Vᵀ.
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
    for task, vector in vectors:
        u, s, vh = torch.linalg.svd(vector, full_matrices=False)
        left.append(u[:, :rank])
        right.append(vh[:rank].T)
        values.append(s[:rank] * weight[task])
    u, v = polar(torch.cat(left, 1)), polar(torch.cat(right, 1))
    return ((u * torch.cat(values)) @ v.T).mul_(lambda_).add_(base)


def polar(matrix: Tensor) -> Tensor:
    """The matrix with orthonormal columns (or rows, where it is wide) that is nearest to a matrix."""
    p, _, qh = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = p @ qh
    return nearest
