"""Which path chooses the tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kernels.compiled import elementwise
from kernels.sampling.compiled import sample_compiled
from kernels.sampling.reference import sample_torch
from kernels.sampling.row import SamplingRow


def sample(logits: Tensor, numbers: Sequence[int], rows: Sequence[SamplingRow]) -> Tensor:
    """Choose a token for some rows of logits.

    Semantics: penalties; `weights` of the logits; candidates are those that top-k, top-p and min-p keep, in this order;
    the token is the first candidate at which the candidates' cumulated weight exceeds `uniform` of their sum.
    Candidates are in descending order of weight, ties in ascending order of token, if a filter is set, and otherwise in
    order of token. A row with a NaN or +inf, or with -inf alone, has token 0. Without a temperature it is the
    first highest logit after penalties, or the first NaN.

    A row's token depends on that row alone. The paths give the same tokens: weights are integers.

    Args:
        logits: [R, vocab] floating; not changed. The vocabulary is at most 2^22 tokens.
        numbers: which rows, at least one.
        rows: the settings of each of them.

    Returns:
        One token for each number: int64 on the logits' device.

    Raises:
        IndexError: a seen token is outside the vocabulary.
        MemoryError: no memory for what the kernel keeps meanwhile.
    """
    kernels = elementwise(logits)
    if kernels is None:
        return sample_torch(logits, numbers, rows)
    return sample_compiled(kernels, logits if logits.stride(1) == 1 else logits.contiguous(), numbers, rows)
