"""Rounding a weight so that the layer's output changes least, by what the layer reads."""

import torch
from torch import Tensor
from torch.nn import functional as F

from merge.bundle.quantised.scheme import Scheme
from merge.bundle.quantised.weights import QuantisedWeight, scaled

DAMPING = 1e-2
"""Added to the diagonal of the inputs' moments, relative to its mean, as in the paper's code."""


def quantise_for_output(weight: Tensor, moments: Tensor, scheme: Scheme) -> QuantisedWeight:
    """Round the columns one after the other, and let those to the right take over what each leaves.

    Semantics: with Uᵀ U = (C + damping)⁻¹, for each column i: q_i = round(w_i / s) within the scheme's range,
    e = (w_i − s q_i) / U_ii, w_j −= U_ij e for j > i. The scales of a group are those that `quantise` gives its columns
    when their turn comes. GPTQ (arXiv 2210.17323).

    Args:
        weight: [N, K] floating, finite.
        moments: C = Σ x xᵀ / n of the layer's inputs, [K, K] float32.
        scheme: bits and group.
    """
    rows, columns = weight.shape
    group = scheme.group or columns
    left = weight.to(torch.float32, copy=True)
    damping = DAMPING * max(float(moments.diagonal().mean()), 1e-30)
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(moments + damping * torch.eye(columns, device=moments.device))
    )
    upper = torch.linalg.cholesky(inverse, upper=True)
    value = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    scale = torch.empty(rows, scheme.scales(columns), dtype=torch.bfloat16, device=weight.device)
    for number, start in enumerate(range(0, columns, group)):
        stop = min(start + group, columns)
        found = scaled(F.pad(left[:, start:stop], (0, group - (stop - start))), scheme)
        wide = found.to(torch.float32)
        errors = torch.empty(rows, stop - start, device=weight.device)
        for column in range(start, stop):
            integers = (left[:, column] / wide).round_().clamp_(scheme.lowest, scheme.highest)
            error = (left[:, column] - integers * wide) / upper[column, column]
            left[:, column + 1 : stop].addr_(error, upper[column, column + 1 : stop], alpha=-1)
            value[:, column], errors[:, column - start] = integers.to(torch.int8), error
        left[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
        scale[:, number] = found
    return QuantisedWeight(value, scale, scheme)
