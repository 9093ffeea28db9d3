"""`paged_attention` with torch's scaled-dot-product attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.attention.batch import AttentionBatch, DecodeGroup


def paged_attention_torch(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """Decoding sequences together, padded under a mask; every prefilling sequence on its own.

    Shapes and semantics are those of `paged_attention`.
    """
    keys, values = key_cache.view(-1, *key_cache.shape[2:]), value_cache.view(-1, *value_cache.shape[2:])
    out = torch.empty_like(query)
    for group in batch.decodes:
        out[group.tokens] = _decode(query[group.tokens], keys, values, group, scale, softcap)
    for sequence, places, visible in batch.prefills:
        rows = slice(batch.query_start[sequence], batch.query_start[sequence + 1])
        out[rows] = _prefill(query[rows], keys[places], values[places], visible, scale, softcap)
    return out


def _decode(
    query: Tensor, keys: Tensor, values: Tensor, group: DecodeGroup, scale: float, softcap: float | None
) -> Tensor:
    n, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    shape = (n, -1, kv_heads, head_dim)
    key = keys.index_select(0, group.places).view(shape).transpose(1, 2)
    value = values.index_select(0, group.places).view(shape).transpose(1, 2)
    # The query heads that share a key head are in the dimension of query tokens, so that no key is copied for them.
    grouped = query.reshape(n, kv_heads, heads // kv_heads, head_dim)
    # One row a query head: a mask of stride 0 there is what cuDNN may refuse as a bias.
    visible = group.visible.expand(-1, -1, grouped.shape[2], -1).contiguous()
    attended = _attention(grouped, key, value, visible, scale, softcap)
    return attended.reshape(n, heads, head_dim)


def _prefill(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float, softcap: float | None) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    attended = _attention(
        query.transpose(0, 1)[None],
        key.repeat_interleave(shared, dim=1).transpose(0, 1)[None],
        value.repeat_interleave(shared, dim=1).transpose(0, 1)[None],
        visible,
        scale,
        softcap,
    )
    return attended[0].transpose(0, 1)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float, softcap: float | None
) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    # Torch's own has no cap. In fp32, as the scores are there.
    scores = torch.matmul(query.to(torch.float32), key.to(torch.float32).transpose(-1, -2)) * scale
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~visible, float("-inf"))
    return torch.matmul(scores.softmax(-1).to(value.dtype), value)
