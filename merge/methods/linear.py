"""Weighted average of the fine-tunes."""

from torch import Tensor

from merge.methods.registry import always, method
from merge.methods.vectors import ONE, PerTask, TaskVectors, weighted_sum


@method("linear", by_rows=always)
def linear(
    _name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    normalize: bool = True,
) -> Tensor:
    """Weighted average of the fine-tunes (model soup); the base serves only to read them against.

    Semantics: Σ_i w_i θ_i / Σ_i w_i, or without `normalize` Σ_i w_i θ_i

    Args:
        _name: the tensor's name; all tensors are treated alike.
        base: θ₀, any shape.
        vectors: τ_i = θ_i − θ₀.
        weight: w_i.
        normalize: divide by the weights' sum.

    Raises:
        ValueError: the weights sum to zero and `normalize` is set.
    """
    total = sum(weight[task] for task in vectors.tasks)
    moved = weighted_sum(base, vectors, weight)
    if not normalize:
        return moved.add_(base, alpha=total)
    if total == 0:
        raise ValueError("linear: the weights sum to 0; set normalize: false or other weights")
    return moved.div_(total).add_(base)
