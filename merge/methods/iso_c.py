"""Iso-C: isotropic merging (Marczak et al., ICML 2025, arXiv 2502.04959)."""

from torch import Tensor

from merge.methods.registry import method, where_excluded
from merge.methods.singular import of_sum
from merge.methods.vectors import EMBEDDINGS, ONE, PerTask, TaskVectors, is_matrix, weighted_sum


@method("iso_c", by_rows=where_excluded)
def iso_c(
    name: str,
    base: Tensor,
    vectors: TaskVectors,
    *,
    weight: PerTask = ONE,
    lambda_: float = 1.0,
    exclude: tuple[str, ...] = EMBEDDINGS,
) -> Tensor:
    """Flatten the singular values of the summed task vectors to their mean.

    Semantics: U S Vᵀ = Σ_i w_i τ_i; θ₀ + λ mean(S) U Vᵀ for 2-D weights, θ₀ + λ mean_i(w_i τ_i) for everything else.

    S has the singular values that are not 0, or rounding errors: the sum of four LoRAs of rank 16 has 64. So λ means
    the same for LoRAs and for full fine-tunes, whose S is all min(N, K) values, as in the released code.

    Args:
        name: the tensor's name.
        base: θ₀, any shape.
        vectors: τ_i.
        weight: w_i.
        lambda_: λ, the paper's α; 1.3 to 1.5 did best on its eight tasks.
        exclude: patterns of 2-D tensors that are averaged instead.
    """
    if not is_matrix(name, base, exclude):
        return weighted_sum(base, vectors, weight).mul_(lambda_ / len(vectors)).add_(base)
    total = of_sum(base, vectors, weight)
    if not len(total.s):
        return base.clone()
    flat: Tensor = total.u @ total.vh
    return flat.mul_(lambda_ * float(total.s.mean())).add_(base)
