"""The rotation of queries and keys on a GPU, with the way of keys and values into the cache, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu


@triton.jit(do_not_specialize=["query_stride", "key_stride", "value_stride"])  # type: ignore[untyped-decorator]
def rotary_kernel(  # type: ignore[no-untyped-def]
    query, key, value, cos, sin, places, out, key_cache, value_cache, query_stride, key_stride, value_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, ROTATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one token: the query's, then the key's, then the value's."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    if head < HEADS + KV_HEADS:
        if head < HEADS:
            source = query + token * query_stride + head * DIM
            target = out + (token * HEADS + head) * DIM
        else:
            source = key + token * key_stride + (head - HEADS) * DIM
            target = key_cache + (tl.load(places + token) * KV_HEADS + head - HEADS) * DIM
        turned = column < ROTATED
        swapped = (column + ROTATED // 2) % ROTATED
        own = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
        other = tl.load(source + swapped, mask=turned, other=0.0).to(tl.float32)
        own *= tl.load(cos + token * ROTATED + column, mask=turned, other=1.0).to(tl.float32)
        own += other * tl.load(sin + token * ROTATED + column, mask=turned, other=0.0).to(tl.float32)
        tl.store(target + column, own.to(out.dtype.element_ty), mask=inside)
    else:
        number = head - HEADS - KV_HEADS
        row = tl.load(value + token * value_stride + number * DIM + column, mask=inside, other=0.0)
        tl.store(value_cache + (tl.load(places + token) * KV_HEADS + number) * DIM + column, row, mask=inside)


def rotate_into_cache_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """As `rotate_into_cache`, but that a place outside the cache is not noticed: its tokens' heads are contiguous."""
    tokens, heads, dim = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    on_gpu.launch(
        rotary_kernel, (tokens, heads + 2 * key.shape[1]),
        query, key, value, cos.contiguous(), sin.contiguous(), slot_mapping, out, key_cache, value_cache,
        query.stride(0), key.stride(0), value.stride(0),
        HEADS=heads, KV_HEADS=key.shape[1], DIM=dim, ROTATED=cos.shape[-1], BLOCK=triton.next_power_of_2(dim),
        num_warps=1,
    )  # fmt: skip
    return out
