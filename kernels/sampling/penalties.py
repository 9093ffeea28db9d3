"""Repetition, presence and frequency penalties."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import on_gpu
from kernels.sampling.row import SamplingRow


def penalise(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Apply penalties in place.

    Semantics: of a seen token's logit z, `z / repetition` if z > 0 and `z * repetition` otherwise; then, if the token
    was generated, minus `presence + frequency * times`. Each operation is rounded to fp32.

    Args:
        logits: [R, vocab] float32, contiguous; changed.
        rows: one a row.

    Raises:
        IndexError: a seen token is outside the vocabulary.
    """
    penalised = [(number, row.seen, row.times) for number, row in enumerate(rows) if row.seen is not None]
    if not penalised:
        return
    vocab, device = logits.shape[1], logits.device
    seen = torch.cat([tokens for _, tokens, _ in penalised])
    if len(seen) and not 0 <= int(seen.min()) <= int(seen.max()) < vocab:
        raise IndexError(OUTSIDE)
    counts = torch.tensor([len(tokens) for _, tokens, _ in penalised])
    theirs = [rows[number] for number, _, _ in penalised]

    first = torch.tensor([number * vocab for number, _, _ in penalised]).repeat_interleave(counts)
    settings = torch.tensor([[row.repetition, row.presence, row.frequency] for row in theirs], dtype=torch.float32)
    times = torch.cat([times for _, _, times in penalised if times is not None])
    places = on_gpu.brought(seen + first, device)
    factors = on_gpu.brought(torch.cat([settings.T.repeat_interleave(counts, dim=1), times[None]]), device)
    penalty, once, each, times = factors.unbind()
    flat = logits.view(-1)
    values = flat[places]
    values = torch.where(values > 0, values / penalty, values * penalty)
    flat[places] = torch.where(times > 0, values - (once + each * times), values)


OUTSIDE = "a penalised token is outside the vocabulary"
