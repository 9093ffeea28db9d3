"""The paper's expert (FREE-Merging, arXiv 2411.16815): the task vector's largest entries, times μ. Needs no data."""

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist

from torch import Tensor


def largest_entries(vector: Tensor, k: int) -> Tensor:
    """Columns of the k largest |entries| of each row.

    Args:
        vector: τ, [N, K].
        k: entries a row, 1 to K.

    Returns:
        [N, k] int64, ascending in each row.
    """
    return vector.abs().topk(k, dim=1).indices.sort(1).values


class Magnitudes:
    """Running means over a model's tensors that the closed forms of μ need."""

    def __init__(self) -> None:
        """Start with no tensor."""
        self._count = 0
        self._all = 0.0
        self._kept = 0.0

    def add(self, vector: Tensor, index: Tensor) -> None:
        """Take in one 2-D task vector and the columns kept of it."""
        self._count += 1
        self._all += float(vector.abs().mean())
        self._kept += float(vector.gather(1, index).abs().mean())

    @property
    def overall(self) -> float:
        """m: mean over the tensors of mean |τ|."""
        return self._all / max(self._count, 1)

    @property
    def kept(self) -> float:
        """x: mean over the tensors of the mean |entry| kept."""
        return self._kept / max(self._count, 1)


def code_factor(magnitudes: Magnitudes, density: float) -> float:
    """μ as the released code computes it.

    Semantics: μ = −log₁₀(d) x / m; 7.25 for Gaussian entries at d = 0.01

    m is taken over the task vector as it is; the released code takes it after its high-pass filter, but an expert here
    does not depend on the merge method.
    """
    return -math.log10(density) * magnitudes.kept / magnitudes.overall if magnitudes.overall else 1.0


def usual_code_factor(density: float) -> float:
    """`code_factor` of normally distributed entries, which those of real task vectors resemble: 5.68 at d = 0.02."""
    normal = NormalDist()
    least = normal.inv_cdf(1 - density / 2)
    kept, overall = 2 * normal.pdf(least) / density, math.sqrt(2 / math.pi)
    return -math.log10(density) * kept / overall


def paper_factors(magnitudes: Mapping[str, Magnitudes], density: float) -> dict[str, float]:
    """μ as the paper prints it, read literally.

    Semantics: μ_i = −log₁₀(d) x_i / (λ_i m_i), λ_i = m_i / Σ_j m_j

    About T times `code_factor`, in which the paper's λ_i has cancelled out. The base of the logarithm is the code's.
    """
    total = sum(item.overall for item in magnitudes.values())
    return {
        task: code_factor(item, density) * total / item.overall if item.overall else 1.0
        for task, item in magnitudes.items()
    }


def measure(vectors: Iterable[Tensor], per_row: Mapping[int, int]) -> Magnitudes:
    """Magnitudes of a task's 2-D vectors; `per_row` gives k for each number of columns."""
    magnitudes = Magnitudes()
    for vector in vectors:
        magnitudes.add(vector, largest_entries(vector, per_row[vector.shape[1]]))
    return magnitudes
