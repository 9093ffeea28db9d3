"""Task arithmetic (Ilharco et al., ICLR 2023, arXiv 2212.04089)."""

from torch import Tensor

from merge.methods.registry import always, method
from merge.methods.vectors import PerTask, TaskVectors, weighted_sum

USUAL = PerTask(0.3)
"""The coefficient that the paper found to suit eight tasks."""


@method("task_arithmetic", by_rows=always)
def task_arithmetic(
    _name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = USUAL,
    lambda_: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """Add the weighted sum of the task vectors to the base.

    Semantics: θ₀ + λ Σ_i w_i τ_i, with `normalize` θ₀ + λ Σ_i w_i τ_i / Σ_i w_i

    Args:
        _name: the tensor's name; all tensors are treated alike.
        base: θ₀, any shape.
        vectors: τ_i.
        weight: w_i.
        lambda_: λ.
        normalize: divide by the weights' sum.

    Raises:
        ValueError: the weights sum to zero and `normalize` is set.
    """
    total = sum(weight[task] for task in vectors.tasks)
    if normalize and total == 0:
        raise ValueError("task_arithmetic: the weights sum to 0; set normalize: false or other weights")
    return weighted_sum(base, vectors, weight).mul_(lambda_ / total if normalize else lambda_).add_(base)
