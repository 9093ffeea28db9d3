"""Rounding to few bits with the best of some scales, compiled.

The reference is `least_error` of `merge.bundle.quantised`, which a merge rounds with; a server rounds at its start with
this, several times as fast.
"""

import torch
from torch import Tensor

from kernels.compiled import Arguments, library

ARGUMENTS = Arguments(
    "quantise",
    "rows size candidates lowest highest value scale integer chosen",
)
"""`QuantiseArguments` of csrc/kernels.h."""


def least_error(value: Tensor, scale: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor] | None:
    """Round rows with the scale of the least squared error.

    Semantics: `q[r, k] = clamp(round(v[r, k] / s[r, c]), lowest, highest)`, half to even, with the first c of those
    with the least `sum_k (v[r, k] - s[r, c] q[r, k])^2`; sums in fp32

    Args:
        value: v, `[R, K]` fp32, contiguous.
        scale: s, `[R, C]` fp32, positive, contiguous.
        lowest: the smallest integer, at least -128.
        highest: the largest, at most 127.

    Returns:
        q `[R, K]` int8 and c `[R]` int64. None if the compiled kernels are not available, or the values are not in
        the processor's memory.
    """
    kernels = library() if value.device.type == "cpu" else None
    if kernels is None:
        return None
    (rows, size), candidates = value.shape, scale.shape[1]
    integer = torch.empty(rows, size, dtype=torch.int8)
    chosen = torch.empty(rows, dtype=torch.int64)
    kernels.call(
        ARGUMENTS,
        rows=rows,
        size=size,
        candidates=candidates,
        lowest=lowest,
        highest=highest,
        value=value.data_ptr(),
        scale=scale.data_ptr(),
        integer=integer.data_ptr(),
        chosen=chosen.data_ptr(),
    )
    return integer, chosen
