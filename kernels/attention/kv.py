"""Writing into the paged key/value cache."""

from __future__ import annotations

import torch
from torch import Tensor


def write_kv(key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
    """Put a step's keys and values into their places of the cache.

    Semantics: `cache.view(-1, kv_heads, head_dim)[slot_mapping[t]] = key[t]`, and the same for values.

    Args:
        key_cache: `[num_blocks, block_size, kv_heads, head_dim]`, contiguous; changed.
        value_cache: the same shape; changed.
        key: `[T, kv_heads, head_dim]` in the cache's dtype.
        value: the same shape.
        slot_mapping: `[T]` integers, `block * block_size + offset` of each token, no two alike.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    check_kv(key_cache, value_cache, key, value, slot_mapping)
    heads = key_cache.shape[2:]
    places = slot_mapping.to(torch.int64)
    key_cache.view(-1, *heads).index_copy_(0, places, key)
    value_cache.view(-1, *heads).index_copy_(0, places, value)


def check_kv(key_cache: Tensor, value_cache: Tensor, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
    """Whether a step's keys and values fit the caches and the places; a ValueError says what does not."""
    heads = key_cache.shape[2:]
    if key_cache.shape != value_cache.shape or len(heads) != 2:
        raise ValueError(f"caches must share one 4-D shape, not {list(key_cache.shape)}, {list(value_cache.shape)}")
    if key.shape != (len(slot_mapping), *heads) or value.shape != key.shape:
        raise ValueError(
            f"key and value must be {[len(slot_mapping), *heads]}, not {list(key.shape)} and {list(value.shape)}"
        )
    if not key.dtype == value.dtype == key_cache.dtype == value_cache.dtype:
        raise ValueError(f"key and value must be {key_cache.dtype} as their caches, not {key.dtype}, {value.dtype}")
