"""SCE, from FuseChat (Wan et al., 2024, arXiv 2408.07990): select, calculate, erase."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from merge.methods.registry import method
from merge.methods.ties import cut_to
from merge.methods.vectors import TaskVectors

TopK = Annotated[float, Field(gt=0, le=1)]


@method("sce")
def sce(_name: str, base: Tensor, vectors: TaskVectors, *, select_topk: TopK = 1.0, lambda_: float = 1.0) -> Tensor:
    """Keep the entries that differ most between the tasks, weight tasks by their energy, drop the minority's signs.

    Semantics: S = the ⌊k m⌋ entries of the largest variance over the tasks, m of which are not 0 (all entries for k =
    1); s_i = τ_i on S, 0 elsewhere; w_i = ‖s_i‖² / Σ_j ‖s_j‖²; A = {i: sign s_i = sign(Σ_j s_j), + for 0};
    θ₀ + λ Σ_{i ∈ A} w_i s_i / Σ_{i ∈ A} w_i, and θ₀ if A is empty.

    Args:
        _name: the tensor's name; all tensors are treated alike.
        base: θ₀, any shape.
        vectors: τ_i; read four times.
        select_topk: k.
        lambda_: λ.
    """
    count = max(1, len(vectors))
    total = vectors.add_to(base.new_zeros(base.shape), dict.fromkeys(vectors.tasks, 1.0))
    chosen = None
    if select_topk < 1:
        variance = base.new_zeros(base.shape)
        for _, vector in vectors:
            variance.add_((vector - total / count).square())
        chosen = _largest(variance, int(select_topk * int(variance.count_nonzero())))
        total.mul_(chosen)
    selected = vectors if chosen is None else vectors.map(lambda _, vector: vector * chosen)
    energy = {task: float(vector.double().square().sum()) for task, vector in selected}
    whole = sum(energy.values())
    weight = {task: own / whole if whole else 1 / count for task, own in energy.items()}
    merged, divisor = base.new_zeros(base.shape), base.new_zeros(base.shape)
    upright = total >= 0
    for task, vector in selected:
        agrees = (vector != 0) & ((vector > 0) == upright)
        merged.add_(vector * agrees, alpha=weight[task])
        divisor.add_(agrees, alpha=weight[task])
    return merged.div_(divisor.masked_fill_(divisor == 0, 1.0)).mul_(lambda_).add_(base)


def _largest(variance: Tensor, kept: int) -> Tensor:
    """1 at the `kept` largest entries, 0 elsewhere."""
    if not kept:
        return variance.new_zeros(variance.shape)
    flat = variance.reshape(-1)
    return (cut_to(flat, kept).trim(flat, slice(0, len(flat))) != 0).to(variance.dtype).view(variance.shape)
