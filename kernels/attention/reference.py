"""What `paged_attention` means, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention.batch import AttentionBatch


def paged_attention_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """The truth that the faster paths are tested against: fp32 (fp64 for an fp64 query), one sequence at a time.

    Shapes and semantics are those of `paged_attention`.
    """
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    kv_heads, head_dim = key_cache.shape[2:]
    shared = query.shape[1] // kv_heads
    out = torch.empty(query.shape, dtype=dtype)
    for sequence, (context, length) in enumerate(zip(batch.context_lens, batch.query_lens, strict=True)):
        places = batch.places(sequence)
        keys = key_cache.view(-1, kv_heads, head_dim)[places].to(dtype).repeat_interleave(shared, dim=1)
        values = value_cache.view(-1, kv_heads, head_dim)[places].to(dtype).repeat_interleave(shared, dim=1)
        start = batch.query_start[sequence]
        for offset in range(length):
            own = context - length + offset
            first = 0 if batch.window is None else max(0, own + 1 - batch.window)
            scores = torch.einsum("hd,lhd->hl", query[start + offset].to(dtype), keys[first : own + 1]) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[start + offset] = torch.einsum("hl,lhd->hd", scores.softmax(-1), values[first : own + 1])
    return out
