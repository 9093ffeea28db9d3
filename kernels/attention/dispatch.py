"""The one public function of the op."""

from __future__ import annotations

from torch import Tensor

from kernels.attention import varlen
from kernels.attention.batch import AttentionBatch
from kernels.attention.compiled import paged_attention_compiled
from kernels.attention.cpu import paged_attention_torch
from kernels.compiled import elementwise


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    batch: AttentionBatch,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention over a paged cache, for prefilling and decoding sequences in one batch.

    Semantics: `out[t, h] = softmax(cap(scale * query[t, h] @ K.T)) @ V`, K and V being the cached keys and values of
    head `h // (heads / kv_heads)` up to and including token t's own (the last `window` of them with a sliding window);
    `cap(s) = softcap * tanh(s / softcap)` (arXiv:2408.00118), or s without a softcap.

    Args:
        query: `[T, heads, head_dim]`, the sequences of the batch one after another.
        key_cache: `[num_blocks, block_size, kv_heads, head_dim]`, contiguous; this step's keys already in it.
        value_cache: the same shape.
        batch: the plan of the step, made once by `AttentionBatch.build`.
        scale: `head_dim ** -0.5` when None.
        softcap: bound of the scores, more than 0; None: they have none.

    Returns:
        `[T, heads, head_dim]` in the dtype of `query`.

    Raises:
        ValueError: shapes do not fit together.
    """
    if query.dim() != 3 or query.shape[0] != batch.tokens:
        raise ValueError(f"query must be [{batch.tokens}, heads, head_dim], not {list(query.shape)}")
    if key_cache.shape != value_cache.shape or key_cache.dim() != 4:
        raise ValueError(f"caches must share one 4-D shape, not {list(key_cache.shape)}, {list(value_cache.shape)}")
    if key_cache.shape[1] != batch.block_size:
        raise ValueError(f"the batch plans blocks of {batch.block_size} tokens, the cache has {key_cache.shape[1]}")
    if query.shape[2] != key_cache.shape[3] or query.shape[1] % key_cache.shape[2]:
        raise ValueError(
            f"query [.., {query.shape[1]}, {query.shape[2]}] does not fit a cache of {key_cache.shape[2]} heads of "
            f"{key_cache.shape[3]}"
        )
    scale = query.shape[2] ** -0.5 if scale is None else scale
    if varlen.attends(query.device, query.dtype, query.shape[2], batch.block_size, softcap):
        return varlen.paged_attention_varlen(query, key_cache, value_cache, batch, scale)
    kernels = elementwise(query, key_cache, value_cache)
    if kernels is None:
        return paged_attention_torch(query, key_cache, value_cache, batch, scale, softcap)
    return paged_attention_compiled(kernels, query, key_cache, value_cache, batch, scale, softcap)
