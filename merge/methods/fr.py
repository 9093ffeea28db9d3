"""FR-Merging (ICCV 2025, arXiv 2411.16815): task vectors lose their low frequencies before they are added."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from merge.methods.highpass import apply_mask, kept_fraction, normalized_mask, official_mask
from merge.methods.registry import method, where_excluded
from merge.methods.vectors import EMBEDDINGS, ONE, PerTask, TaskVectors, is_matrix, weighted_sum

Coefficients = Literal["const", "paper", "align"]
_USUAL: Mapping[Coefficients, float] = {"const": 0.3, "paper": 1.0, "align": 0.3}


def _usual_scale(parameters: Any) -> float:
    return _USUAL[parameters.coefficients]


def _by_rows(name: str, parameters: Any) -> bool:
    return parameters.coefficients == "const" and where_excluded(name, parameters)


@method("fr", _usual_scale, _by_rows)
def fr(
    name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    lambda_: float = 0.3,
    coefficients: Coefficients = "const",
    filter_: Literal["official", "normalized"] = "official",
    r: Annotated[float, Field(ge=0)] = 0.7,
    d0: Annotated[float, Field(ge=0, le=0.75)] = 0.1,
    control: Literal["none", "shrink"] = "none",
    exclude: tuple[str, ...] = EMBEDDINGS,
) -> Tensor:
    """High-pass filter the task vectors, then add their weighted sum to the base.

    Semantics: θ₀ + λ Σ_i c_i w_i G[τ_i], G the filter for 2-D weights and the identity for everything else.
    c_i = 1 (`const`, the released code), E|τ_i| / Σ_j E|τ_j| (`paper`), or max_j E|Gτ_j| / E|Gτ_i| (`align`, an option
    of the released code), E the mean over the tensor. G is linear, so the sum is filtered: one transform a tensor
    whatever the number of tasks (`align` needs another for each task, to measure it).

    Args:
        name: the tensor's name.
        base: θ₀, any shape; float32 or float64.
        vectors: τ_i.
        weight: w_i.
        lambda_: λ; usually 0.3, or 1 with `paper`, whose coefficients sum to 1.
        coefficients: c_i.
        filter_: `official_mask` with r, or `normalized_mask` with d0.
        r: radius about the Nyquist frequency as a fraction of min(H, W).
        d0: lowest frequency kept, in cycles a sample.
        control: `shrink` multiplies by the fraction of frequencies that the filter keeps, in place of filtering: what
            of the method's effect is not due to frequencies.
        exclude: patterns of 2-D tensors that are added without filtering.
    """

    def high_pass(matrix: Tensor) -> Tensor:
        if not is_matrix(name, matrix, exclude):
            return matrix
        height, width = matrix.shape
        mask = official_mask(height, width, r) if filter_ == "official" else normalized_mask(height, width, d0)
        return matrix * kept_fraction(mask) if control == "shrink" else apply_mask(matrix, mask)

    coefficient = {task: c * weight[task] for task, c in _coefficients(coefficients, vectors, high_pass).items()}
    return high_pass(weighted_sum(base, vectors, coefficient)).mul(lambda_).add_(base)


def _coefficients(rule: Coefficients, vectors: TaskVectors, high_pass: Callable[[Tensor], Tensor]) -> dict[str, float]:
    if rule == "const":
        return dict.fromkeys(vectors.tasks, 1.0)
    if rule == "paper":
        means = {task: float(vector.abs().mean()) for task, vector in vectors}
        total = sum(means.values())
        return {task: mean / total if total else 0.0 for task, mean in means.items()}
    means = {task: float(high_pass(vector).abs().mean()) for task, vector in vectors}
    largest = max(means.values())
    return {task: largest / mean if mean else 0.0 for task, mean in means.items()}
