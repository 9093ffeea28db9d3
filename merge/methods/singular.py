"""Singular value decompositions of task vectors, without the directions that are rounding noise.

A LoRA's task vector has a few dozen singular values; the other hundreds that a dense decomposition returns are rounding
errors of W + B A, in directions that change with the processor. A method that gives all of them the same weight would
merge that noise. So LoRAs are decomposed from their factors. Of a dense task vector only the directions above the
rounding errors of the stored weights are kept, if the rest is only rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from merge.methods.vectors import Factors, PerTask, TaskVectors, weighted_sum


@dataclass(frozen=True)
class Singular:
    """u diag(s) vh.

    Attributes:
        u: [N, R], orthonormal columns.
        s: [R], positive and descending. R is 0 for a matrix of zeros.
        vh: [R, K], orthonormal rows.
    """

    u: Tensor
    s: Tensor
    vh: Tensor

    def leading(self, rank: int) -> "Singular":
        """The `rank` largest singular values (all of them, if there are fewer) with their vectors."""
        return Singular(self.u[:, :rank], self.s[:rank], self.vh[:rank])


def of_task(base: Tensor, vectors: TaskVectors, task: str) -> Singular:
    """Decompose one task's vector.

    Args:
        base: θ₀, [N, K]; its sizes say how coarse the stored weights are.
        vectors: τ_i.
        task: i.
    """
    factors = vectors.factors(task)
    if factors is not None:
        return of_product(factors)
    return of_matrix(vectors.read(task), rounding(base, vectors.stored(task)))


def of_sum(base: Tensor, vectors: TaskVectors, weight: PerTask | Mapping[str, float]) -> Singular:
    """Decompose Σ_i w_i τ_i, from the factors if every task has them.

    Args:
        base: θ₀, [N, K].
        vectors: τ_i.
        weight: w_i.
    """
    found = {task: vectors.factors(task) for task in vectors.tasks}
    products = {task: item for task, item in found.items() if item is not None}
    if len(products) == len(found) and sum(item.left.shape[1] for item in products.values()) < min(base.shape):
        left = torch.cat([item.left * weight[task] for task, item in products.items()], 1)
        return of_product(Factors(left, torch.cat([item.right for item in products.values()])))
    # Rounding errors of different fine-tunes are independent, so their squares add up.
    noise = sum(weight[task] ** 2 * rounding(base, vectors.stored(task)) for task in found)
    return of_matrix(weighted_sum(base, vectors, weight), noise)


def of_product(factors: Factors) -> Singular:
    """Decompose left @ right by QR decompositions of the factors.

    The only matrix that goes through an SVD is [R, R].
    """
    q, r = torch.linalg.qr(factors.left)
    p, t = torch.linalg.qr(factors.right.T)
    u, s, vh = torch.linalg.svd(r @ t.T, full_matrices=False)
    kept = int((s > smallest(s)).sum())
    return Singular(q @ u[:, :kept], s[:kept], vh[:kept] @ p.T)


def of_matrix(matrix: Tensor, noise: float) -> Singular:
    """Decompose a matrix that may be one of low rank plus rounding errors.

    Semantics: with e² the mean square of the rounding errors, no singular value of the errors alone is much larger than
    e (√N + √K). Let r values be larger. The others are left out if the errors alone explain them, Σ s² ≤ `SLACK` e²
    (N − r)(K − r), and if they are the lesser part of the squares and at least half of the values. That is so for a
    LoRA that was added to its base and stored. A full fine-tune, of which rounding hides a few directions at most,
    keeps them all.

    Args:
        matrix: [N, K].
        noise: e², as from `rounding`; errors of the decomposition itself are allowed for.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = significant(s, (matrix.shape[0], matrix.shape[1]), noise)
    return Singular(u[:, :kept], s[:kept], vh[:kept])


def significant(s: Tensor, shape: tuple[int, int], noise: float) -> int:
    """How many singular values of a matrix are significant, by the rule of `of_matrix`.

    Args:
        s: its singular values, [R], descending.
        shape: the matrix's.
        noise: e².
    """
    height, width = shape
    least = float(smallest(s).sum())
    kept = int((s > max(least, noise**0.5 * (height**0.5 + width**0.5))).sum())
    squares = s.square().double()
    head, tail = float(squares[:kept].sum()), float(squares[kept:].sum())
    explained = SLACK * noise * (height - kept) * (width - kept) + len(s) * least**2
    if tail > explained or tail >= head or 2 * kept > len(s):
        return int((s > 0).sum())
    return kept


SLACK = 1.5
"""The smallest kept singular values take a part of the errors with them, and the arithmetic adds further errors."""


def rounding(base: Tensor, stored: torch.dtype) -> float:
    """Mean square of the errors that rounding a fine-tune's weights leaves in its task vector.

    Semantics: mean of ulp² / 12, ulp the distance between two numbers of the dtype at an entry's size

    Args:
        base: θ₀, any shape; its fine-tune's entries are of about the same sizes.
        stored: what the fine-tune's weights were rounded to.
    """
    if not base.numel():
        return 0.0
    # The bits of the exponent alone are the power of two at or below a number; of 0 they are 0.
    bits, exponent = (torch.int64, 0x7FF << 52) if base.dtype == torch.float64 else (torch.int32, 0xFF << 23)
    binade = (base.contiguous().view(bits) & exponent).view(base.dtype)
    return torch.finfo(stored).eps ** 2 * squares(binade) / base.numel() / 12


def squares(tensor: Tensor) -> float:
    """The sum of the squares of a tensor's entries: of each row in its dtype, of all rows in float64."""
    rows = tensor.reshape(len(tensor), prod(tensor.shape[1:])) if tensor.ndim else tensor.reshape(1, 1)
    return float(torch.linalg.vector_norm(rows, dim=1).double().square().sum())


def smallest(s: Tensor) -> Tensor:
    """The size up to which a computed singular value is a rounding error of 0: 32 ε of the largest.

    Args:
        s: [R], descending.

    Returns:
        [1], or [0] if R is 0.
    """
    return 32 * torch.finfo(s.dtype).eps * s[:1]
