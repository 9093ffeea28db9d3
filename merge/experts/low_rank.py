"""The low-rank part of an expert: a change of a weight as a sum of directions b aᵀ, the best ones first.

Without prompts the best r directions are those of the truncated singular value decomposition (Eckart and Young, 1936).
With prompts the error that matters is the one of the layer's output, E = Σ |Δ x − Δ̂ x|² over its inputs x, which is a
Frobenius norm again: |(Δ − Δ̂) L|² with L Lᵀ = Σ x xᵀ. So Δ L is decomposed, and the right factors are multiplied by
L⁻¹ (ASVD, arXiv 2312.05821; SVD-LLM, arXiv 2403.07378).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from merge.bundle import LowRankDelta
from merge.experts.storage import Storage
from merge.methods.singular import of_product
from merge.methods.vectors import Factors

OVERSAMPLED = 16
"""Columns that a randomised decomposition works on beyond those that it returns."""

PASSES = 4
"""Power iterations of a randomised decomposition; the spectra of task vectors fall slowly."""

LARGEST = 127

MOST_RANK = 256
"""Directions of one weight, at most, which is what the kernels take."""


@dataclass(frozen=True)
class Metric:
    """What a layer's inputs make of an error of its weight, C = Σ x xᵀ / n, as a root of it.

    Attributes:
        root: L with L Lᵀ = C, [K, K] float32, lower triangular.
    """

    root: Tensor

    def undone(self, x: Tensor) -> Tensor:
        """The product x L⁻¹ of x [R, K] float32."""
        product: Tensor = torch.linalg.solve_triangular(self.root, x, upper=False, left=False)
        return product

    def transposed_undone(self, x: Tensor) -> Tensor:
        """The product x L⁻ᵀ of x [R, K] float32."""
        product: Tensor = torch.linalg.solve_triangular(self.root.T, x, upper=True, left=False)
        return product


RIDGE = 1e-2
"""Added to the diagonal of C, relative to its mean: directions that few prompts have seen are not free of charge."""


def metric_of(gram: Tensor) -> Metric:
    """The metric of a layer's inputs.

    Semantics: C + ridge_of(C)·I = L Lᵀ

    Args:
        gram: C, [K, K] float32, symmetric.
    """
    ridged = gram.clone()
    ridged.diagonal().add_(ridge_of(gram))
    return Metric(torch.linalg.cholesky(ridged))


def ridge_of(gram: Tensor) -> float:
    """What `metric_of` adds to the diagonal of C: `RIDGE` times its mean, and a tiny number if all inputs are 0."""
    return RIDGE * max(float(gram.diagonal().mean()), 1e-30)


@dataclass(frozen=True)
class Directions:
    """Δ ≈ b @ a, the best approximation of Δ by its rank, and so is every leading part of it.

    Attributes:
        b: [N, R] float32.
        a: [R, K] float32.
        gain: [R] float64 on the processor, descending: the squared error that each direction removes, in the metric
            if there is one.
    """

    b: Tensor
    a: Tensor
    gain: Tensor

    def leading(self, rank: int) -> "Directions":
        """The best `rank` directions, in separate memory."""
        return Directions(self.b[:, :rank].clone(), self.a[:rank].clone(), self.gain[:rank].clone())


def directions(change: Tensor | Factors, most: int, metric: Metric | None = None) -> Directions:
    """Decompose what an expert shall add to one weight.

    A change that is known as factors is decomposed from them, and nothing of its full size is made. Of a matrix that is
    large beside the wanted rank only the leading singular vectors are computed, by subspace iteration from fixed random
    numbers (Halko et al., SIAM Review 2011, arXiv 0909.4061).

    Args:
        change: Δ, [N, K] float32, or its factors.
        most: directions wanted, at most; none that is 0 or a rounding error is returned.
        metric: of the layer's inputs; None: all inputs count alike.
    """
    if isinstance(change, Factors):
        right = change.right if metric is None else change.right @ metric.root
        found = of_product(Factors(change.left, right))
        u, s, vh = found.u[:, :most], found.s[:most], found.vh[:most]
    else:
        u, s, vh = leading_svd(change if metric is None else change @ metric.root, most)
    half = s.sqrt()
    a = half[:, None] * vh
    return Directions(u * half, a if metric is None else metric.undone(a), s.double().square().cpu())


def leading_svd(matrix: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular values of a matrix, with their vectors.

    Args:
        matrix: [N, K] float32.
        most: how many, at most.

    Returns:
        u [N, R], s [R] positive and descending, vh [R, K], with R ≤ `most`; fewer if the others are 0.
    """
    if not bool(matrix.any()):
        return matrix[:, :0], matrix[0, :0], matrix[:0]
    width = most + OVERSAMPLED
    if 3 * width > min(matrix.shape):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        start = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0)).to(matrix.device)
        q = torch.linalg.qr(matrix @ start).Q
        for _ in range(PASSES):
            q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ q).Q).Q
        small, s, vh = torch.linalg.svd(q.T @ matrix, full_matrices=False)
        u = q @ small
    kept = min(most, int((s > 32 * torch.finfo(s.dtype).eps * s[:1]).sum()))
    return u[:, :kept], s[:kept], vh[:kept]


def stored(b: Tensor, a: Tensor, storage: Storage) -> LowRankDelta:
    """A low-rank part as a file holds it.

    Semantics: int8: A_r = round(a_r / s_r), B_r = round(b_r / t_r), both within ±127, scale_r = s_r t_r with
    s_r = max|a_r| / 127 and t_r = max|b_r| / 127; bf16: a and b rounded, scale 1

    Args:
        b: [N, r] float32.
        a: [r, K] float32.
        storage: of the factors.
    """
    if storage == "bf16":
        return LowRankDelta(a.to(torch.bfloat16), b.to(torch.bfloat16), torch.ones(len(a), device=a.device))
    rows, columns = (x.abs().amax(dim).clamp_min(1e-18) / LARGEST for x, dim in ((a, 1), (b, 0)))
    return LowRankDelta(
        (a / rows[:, None]).round_().to(torch.int8).contiguous(),
        (b / columns).round_().to(torch.int8).contiguous(),
        rows * columns,
    )


def direction_bytes(rows: int, columns: int, storage: Storage) -> int:
    """Bytes that one direction of a weight [rows, columns] takes in a file: two vectors and a float32 scale."""
    return (rows + columns) * (1 if storage == "int8" else 2) + 4
