"""Rotary position embedding, and the way of a step's keys and values into the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import on_gpu
from kernels.attention.head_norm import HeadNorm
from kernels.attention.kv import check_kv, write_kv
from kernels.compiled import TYPES, Arguments, elementwise

ARGUMENTS = Arguments(
    "rotary",
    "type tokens heads kv_heads dim rotated query query_stride key key_stride value value_stride "
    "cos sin places out keys values cache_rows",
)
"""`RotaryArguments` of csrc/kernels.h."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + R / 2) of the first R dimensions by its position's angle (arXiv:2104.09864).

    Semantics: `y = x * cos + swap(x) * sin` of the first R dimensions, `swap` exchanging their halves; `y = x` of the
    others.

    Args:
        x: `[T, heads, head_dim]`.
        cos: `[T, 1, R]`, in the dtype of `x`.
        sin: the same shape, its first half negated.

    Returns:
        `[T, heads, head_dim]`, the dtype of `x`.
    """
    rotated = cos.shape[-1]
    turned, kept = x[..., :rotated], x[..., rotated:]
    turned = (turned * cos).addcmul_(turned.roll(rotated // 2, dims=-1), sin)
    return turned if rotated == x.shape[-1] else torch.cat([turned, kept], dim=-1)


def rotate_into_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    norms: tuple[HeadNorm, HeadNorm] | None = None,
) -> Tensor:
    """Rotate a step's queries and keys, and put keys and values into their places of the cache.

    Semantics: `rotate(query)` is returned; `rotate(key)` and `value` are written as by `write_kv`, queries and keys
    after their norms if there are any. Compiled in fp32 and rounded once, in torch rounded after each step; a norm is
    rounded before the rotation.

    Args:
        query: `[T, heads, head_dim]`.
        key: `[T, kv_heads, head_dim]`.
        value: the shape of `key`.
        cos: `[T, 1, R]`, R even and no more than head_dim.
        sin: the same shape, its first half negated.
        key_cache: `[num_blocks, block_size, kv_heads, head_dim]`, contiguous; changed.
        value_cache: the same shape; changed.
        slot_mapping: `[T]` int64, `block * block_size + offset` of each token, no two alike.
        norms: of each head of the queries and of the keys, with one eps and offset; or None.

    Returns:
        The shape and dtype of `query`, contiguous.

    Raises:
        ValueError: shapes or dtypes do not fit.
        IndexError: a place outside the cache; on a GPU this is not noticed.
    """
    tokens, heads, dim = query.shape
    check_kv(key_cache, value_cache, key, value, slot_mapping)
    rotated = cos.shape[-1]
    if tokens != key.shape[0] or dim != key.shape[2] or not cos.shape == sin.shape == (tokens, 1, rotated):
        raise ValueError(
            f"query {list(query.shape)}, key {list(key.shape)} and cos {list(cos.shape)} must be of the same tokens "
            "and the same head_dim"
        )
    if rotated % 2 or rotated > dim:
        raise ValueError(f"cos {list(cos.shape)} must have an even last dimension, at most head_dim {dim}")
    if norms is not None and not (on_gpu.runs_triton(query) and {one.weight.dtype for one in norms} == {query.dtype}):
        query, key, norms = norms[0](query), norms[1](key), None
    if on_gpu.runs_triton(query):
        from kernels.attention.rotary_triton import rotate_into_cache_triton  # Triton is optional, and slow to import

        places = slot_mapping if slot_mapping.dtype == torch.int64 else slot_mapping.to(torch.int64)
        rows = _rows(query), _rows(key), _rows(value)
        return rotate_into_cache_triton(*rows, cos, sin, key_cache, value_cache, places, norms)
    kernels = elementwise(query, key, cos, sin)
    if kernels is None or slot_mapping.dtype != torch.int64 or not slot_mapping.is_contiguous():
        write_kv(key_cache, value_cache, rotate(key, cos, sin), value, slot_mapping)
        return rotate(query, cos, sin)
    query, key, value = _rows(query), _rows(key), _rows(value)
    cos, sin = cos.contiguous(), sin.contiguous()
    out = query.new_empty(query.shape)
    kernels.call(
        ARGUMENTS,
        type=TYPES[query.dtype],
        tokens=tokens,
        heads=heads,
        kv_heads=key.shape[1],
        dim=dim,
        rotated=rotated,
        query=query.data_ptr(),
        query_stride=query.stride(0),
        key=key.data_ptr(),
        key_stride=key.stride(0),
        value=value.data_ptr(),
        value_stride=value.stride(0),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        places=slot_mapping.data_ptr(),
        out=out.data_ptr(),
        keys=key_cache.data_ptr(),
        values=value_cache.data_ptr(),
        cache_rows=key_cache.shape[0] * key_cache.shape[1],
    )
    return out


def _rows(x: Tensor) -> Tensor:
    """`x` with the heads of a token one after another, copied only if they are not."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
