"""The factors that a LoRA holds: an expert's own, or those nearest to a residual that is not of low rank."""

from dataclasses import dataclass

import torch
from torch import Tensor

from merge.bundle import LowRankDelta

EXACT = 1024
"""Up to this many rows or columns all singular values are computed; beyond, the largest by random projection."""

OVERSAMPLED, ITERATIONS, SEED = 16, 4, 0


@dataclass(frozen=True)
class Factors:
    """E ≈ B A.

    Attributes:
        a: A, [R, K] float32.
        b: B, [N, R] float32.
        size: ‖E‖², Frobenius.
        lost: ‖E − B A‖².
    """

    a: Tensor
    b: Tensor
    size: float
    lost: float

    @property
    def error(self) -> float:
        """‖E − B A‖ / ‖E‖; 0 for a residual of zeros."""
        return (self.lost / self.size) ** 0.5 if self.size else 0.0


def low_rank(residual: Tensor, rank: int) -> Factors:
    """The best approximation of a rank, by truncated SVD (Eckart and Young, 1936), its halves equally large.

    Semantics: E = U S Vᵀ;  B = U_R S_R^½,  A = S_R^½ V_Rᵀ

    Args:
        residual: E, [N, K] float32.
        rank: R; if it is more than min(N, K) the rest of A and B is 0.
    """
    kept = min(rank, *residual.shape)
    if min(residual.shape) <= EXACT:
        u, s, vh = torch.linalg.svd(residual, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            width = min(kept + OVERSAMPLED, *residual.shape)
            u, s, v = torch.svd_lowrank(residual, width, ITERATIONS)
            vh = v.T
    root = s[:kept].sqrt()
    a, b = torch.zeros(rank, residual.shape[1]), torch.zeros(residual.shape[0], rank)
    a[:kept], b[:, :kept] = root[:, None] * vh[:kept], u[:, :kept] * root
    size = float(residual.square().sum(dtype=torch.float64))
    return Factors(a, b, size, float((residual - b @ a).square().sum(dtype=torch.float64)))


def own_factors(delta: LowRankDelta, rank: int) -> Factors:
    """The unchanged factors of a low-rank part, with the scales in B.

    Semantics: A = A_delta,  B = B_delta diag(scale), each product rounded to float32

    Args:
        delta: of rank r.
        rank: R, at least r; the rest of A and B is 0.
    """
    a, b = torch.zeros(rank, delta.shape[1]), torch.zeros(delta.shape[0], rank)
    a[: delta.rank], b[:, : delta.rank] = delta.a, delta.b.to(torch.float32) * delta.scale
    # ‖B A‖² = tr(BᵀB A Aᵀ), without the product itself.
    grams = [factor.to(torch.float64) for factor in (a, b)]
    size = float(((grams[1].T @ grams[1]) * (grams[0] @ grams[0].T)).sum())
    return Factors(a, b, max(0.0, size), 0.0)
