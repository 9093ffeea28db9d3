"""Random paged caches for the attention tests."""

import torch
from torch import Tensor

from kernels.attention import AttentionBatch


def scattered_tables(context_lens: list[int], block_size: int, seed: int = 0) -> Tensor:
    """Block tables whose blocks are shuffled over the cache; unused entries are -1."""
    blocks = [-(-length // block_size) for length in context_lens]
    order = torch.randperm(sum(blocks), generator=torch.Generator().manual_seed(seed)).split(blocks)
    tables = torch.full((len(blocks), max(blocks)), -1, dtype=torch.int32)
    for row, owned in zip(tables, order, strict=True):
        row[: len(owned)] = owned
    return tables


def random_cache(
    batch: AttentionBatch, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """query `[T, heads, head_dim]` and the two caches."""
    generator = torch.Generator().manual_seed(0)
    blocks = int(batch.block_tables.max()) + 1
    shape = (blocks, batch.block_size, kv_heads, head_dim)
    query = torch.randn(batch.tokens, heads, head_dim, generator=generator)
    key, value = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return query.to(dtype), key.to(dtype), value.to(dtype)
