"""Activation-aware extraction: keep the entries that matter for what the layer computes, with the values that do best.

For one linear layer let H = Σ x xᵀ over the layer's inputs x on prompts of the task, and T the right-hand side of the
normal equations E H = T (`fit` says which). Of a row's equations only k entries may be used. They are chosen by
orthogonal matching pursuit (Pati et al., 1993), batched over the rows.
"""

import torch
from torch import Tensor

RIDGE = 1e-3
"""Added to the diagonal of the small systems, relative to the mean of H's diagonal."""

CHUNK = 1 << 24
"""Elements of the gathered systems held at once."""


def greedy_support(target: Tensor, gram: Tensor, k: int, rounds: int = 16) -> tuple[Tensor, Tensor]:
    """Choose k entries a row, and their values, that together reproduce the layer's output best.

    Semantics: R = T − E H; the columns with the largest R_nj² / H_jj are added; the values solve
    (H_ss + ridge) v = T_s; and so on until k columns are chosen.

    With k ≤ `rounds` one column is added a round, as in the textbook; otherwise ⌈k / rounds⌉, which bounds the cost at
    `rounds` products [N, K] × [K, K].

    Args:
        target: T, [N, K] float32.
        gram: H, [K, K] float32.
        k: entries a row, 1 to K.
        rounds: most rounds.

    Returns:
        index [N, k] int64, ascending in each row, and value [N, k] float32.
    """
    power = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny)
    error = target
    index = torch.empty(target.shape[0], 0, dtype=torch.int64, device=target.device)
    value = target.new_empty(target.shape[0], 0)
    step = -(-k // min(k, rounds))
    while index.shape[1] < k:
        score = (error.square() / power).scatter_(1, index, -1.0)
        best = score.topk(min(step, k - index.shape[1]), dim=1).indices
        index = torch.cat([index, best], 1).sort(1).values
        value = fit_values(target, gram, index)
        if index.shape[1] < k:
            error = target - torch.zeros_like(target).scatter_(1, index, value) @ gram
    return index, value


def fit_values(target: Tensor, gram: Tensor, index: Tensor) -> Tensor:
    """Least-squares values on given supports.

    Semantics: (H_ss + ridge·mean(diag H)·I) v = T_s, s a row's support

    Args:
        target: T, [N, K] float32.
        gram: H, [K, K] float32.
        index: s, [N, k] int64, distinct in each row.

    Returns:
        v, [N, k] float32.
    """
    rows, k = index.shape
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(k, device=gram.device)
    wanted = target.gather(1, index)
    step = max(1, CHUNK // (k * k))
    parts = []
    for start in range(0, rows, step):
        s = index[start : start + step]
        system = gram[s[:, :, None], s[:, None, :]] + ridge
        parts.append(torch.linalg.solve(system, wanted[start : start + step]))
    return torch.cat(parts)
