"""The rotation of queries and keys on a GPU, with the way of keys and values into the cache, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import on_gpu
from kernels.attention.head_norm import HeadNorm


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(  # type: ignore[no-untyped-def]
    x, column, inside, root, weight, delta, slots, gates, token, width, offset,
    DIM: tl.constexpr, HAS_DELTA: tl.constexpr, HAS_OFFSET: tl.constexpr,
):  # fmt: skip
    """Columns of a head by the root of its mean square and by the weight, rounded as `add_norm_kernel` does: fp32."""
    raw = tl.load(x + column, mask=inside, other=0.0)
    normed = raw.to(tl.float32) * root
    own = tl.load(weight + column, mask=inside, other=0.0)
    if HAS_DELTA:
        shift = tl.zeros(column.shape, tl.float32)
        for place in range(width):
            slot = tl.load(slots + token * width + place)
            if slot >= 0:
                row = tl.load(delta + slot.to(tl.int64) * DIM + column, mask=inside, other=0.0)
                shift += tl.load(gates + token * width + place) * row
        own = (own.to(tl.float32) + shift).to(own.dtype)
    result = (
        (own.to(tl.float32) + offset) * normed
        if HAS_OFFSET
        else own.to(tl.float32) * normed.to(raw.dtype).to(tl.float32)
    )
    return result.to(raw.dtype).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _turned(  # type: ignore[no-untyped-def]
    x, cos, sin, weight, delta, slots, gates, token, width, eps, offset,
    NORMED: tl.constexpr, HAS_DELTA: tl.constexpr, HAS_OFFSET: tl.constexpr, DIM: tl.constexpr, ROTATED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One head, normed and rotated: [BLOCK] fp32."""
    column = tl.arange(0, BLOCK)
    inside, turned = column < DIM, column < ROTATED
    swapped = (column + ROTATED // 2) % ROTATED
    own = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    if NORMED:
        root = tl.rsqrt(tl.sum(own * own, axis=0) / DIM + eps)
        own = _scaled(
            x, column, inside, root, weight, delta, slots, gates, token, width, offset, DIM, HAS_DELTA, HAS_OFFSET
        )
        other = _scaled(
            x, swapped, turned, root, weight, delta, slots, gates, token, width, offset, DIM, HAS_DELTA, HAS_OFFSET
        )
    else:
        other = tl.load(x + swapped, mask=turned, other=0.0).to(tl.float32)
    own *= tl.load(cos + token * ROTATED + column, mask=turned, other=1.0).to(tl.float32)
    return own + other * tl.load(sin + token * ROTATED + column, mask=turned, other=0.0).to(tl.float32)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["query_stride", "key_stride", "value_stride", "width"]
)
def rotary_kernel(  # type: ignore[no-untyped-def]
    query, key, value, cos, sin, places, out, key_cache, value_cache, query_weight, key_weight, query_delta, key_delta,
    slots, gates, query_stride, key_stride, value_stride, width, eps, offset,
    NORMED: tl.constexpr, QUERY_DELTA: tl.constexpr, KEY_DELTA: tl.constexpr, HAS_OFFSET: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, ROTATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one token: the query's, then the key's, then the value's."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    if head < HEADS:
        made = _turned(
            query + token * query_stride + head * DIM, cos, sin, query_weight, query_delta, slots, gates, token, width,
            eps, offset, NORMED, QUERY_DELTA, HAS_OFFSET, DIM, ROTATED, BLOCK,
        )  # fmt: skip
        tl.store(out + (token * HEADS + head) * DIM + column, made.to(out.dtype.element_ty), mask=inside)
    elif head < HEADS + KV_HEADS:
        number = head - HEADS
        made = _turned(
            key + token * key_stride + number * DIM, cos, sin, key_weight, key_delta, slots, gates, token, width,
            eps, offset, NORMED, KEY_DELTA, HAS_OFFSET, DIM, ROTATED, BLOCK,
        )  # fmt: skip
        target = key_cache + (tl.load(places + token) * KV_HEADS + number) * DIM
        tl.store(target + column, made.to(out.dtype.element_ty), mask=inside)
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
    norms: tuple[HeadNorm, HeadNorm] | None = None,
) -> Tensor:
    """`rotate_into_cache` for contiguous heads, without a check of places outside the cache."""
    tokens, heads, dim = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    # What a kernel is not to read is any tensor.
    weights, deltas, slots, gates, width, eps, offset = (out, out), [out, out], out, out, 0, 0.0, 0.0
    shifts = (None, None) if norms is None else (norms[0].shifts(tokens), norms[1].shifts(tokens))
    if norms is not None:
        weights, eps, offset = (norms[0].weight, norms[1].weight), norms[0].eps, norms[0].offset
    for place, shift in enumerate(shifts):
        if shift is not None:
            deltas[place], slots, gates, width = shift[0], shift[1].slots, shift[1].gates, shift[1].slots.shape[1]
    on_gpu.launch(
        rotary_kernel, (tokens, heads + 2 * key.shape[1]),
        query, key, value, cos.contiguous(), sin.contiguous(), slot_mapping, out, key_cache, value_cache,
        *weights, *deltas, slots, gates, query.stride(0), key.stride(0), value.stride(0), width, eps, offset,
        NORMED=norms is not None, QUERY_DELTA=shifts[0] is not None, KEY_DELTA=shifts[1] is not None,
        HAS_OFFSET=bool(offset), HEADS=heads, KV_HEADS=key.shape[1], DIM=dim, ROTATED=cos.shape[-1],
        BLOCK=triton.next_power_of_2(dim), num_warps=1,
    )  # fmt: skip
    return out
