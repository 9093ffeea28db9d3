"""The plain product by torch, in few enough shapes that what oneDNN keeps of each of them stays bounded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_FEWEST = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, with rows of zeros below `x` for oneDNN.

    Semantics: `y[t] = weight @ x[t] + bias`

    On a CPU torch hands bf16 to oneDNN, which compiles code for every number of tokens that it has not seen and keeps
    it: 0.6 MB and 5 ms for each shape, of which continuous batching makes as many as there are numbers of tokens. So
    bf16 gets one of eight numbers an octave, 36 from 65 to 2,048 tokens, for at most an eighth more rows from 129 on.

    Args:
        x: `[T, K]`.
        weight: `[N, K]`.
        bias: `[N]` or None.
        out: `[padded(T) or more, N]`, memory for the result; None: new memory. The C library maps memory of more than
            32 MB anew for each result, and writing to 40 MB of it for the first time took a third of the product.

    Returns:
        `[T, N]`, contiguous.
    """
    tokens = x.shape[0]
    rows = padded(tokens) if x.dtype == torch.bfloat16 and x.device.type == "cpu" else tokens
    if rows != tokens:
        x = F.pad(x, (0, 0, 0, rows - tokens))
    if out is None:
        return F.linear(x, weight, bias)[:tokens]
    if bias is None:
        torch.mm(x, weight.t(), out=out[:rows])
    else:
        torch.addmm(bias, x, weight.t(), out=out[:rows])
    return out[:tokens]


def padded(tokens: int) -> int:
    """The number of rows for a number of tokens: the next multiple of an eighth of the power of two below, or of 16.

    Up to 16 tokens are not padded: their time is that of reading the weights, and torch has a faster path for one.
    """
    if tokens <= _FEWEST:
        return tokens
    step = max(_FEWEST, (1 << (tokens - 1).bit_length()) // 16)
    return -(-tokens // step) * step
