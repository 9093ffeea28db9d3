"""What `torch.nn.attention.varlen.varlen_attn` computes from a paged cache, in plain torch, with its own signature."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

SIGNATURE = inspect.signature(varlen_attn)


def attend(*positional: Any, **named: Any) -> Tensor:
    """Refuses what FlashAttention 2 refuses of a paged cache."""
    given = SIGNATURE.bind(*positional, **named)
    given.apply_defaults()
    query, key, value, starts, max_q, max_k = (
        given.arguments[name] for name in ("query", "key", "value", "cu_seq_q", "max_q", "max_k")
    )
    used, tables, window = (given.arguments[name] for name in ("seqused_k", "block_table", "window_size"))
    assert given.arguments["cu_seq_k"] is None
    assert key.shape[1] % 256 == 0
    assert all(one.dtype == torch.int32 and one.is_contiguous() for one in (starts, used))
    assert tables.dtype == torch.int32
    assert tables.stride(-1) == query.stride(-1) == 1
    assert given.arguments["enable_gqa"] or query.shape[1] == key.shape[2]
    out, shared = torch.empty_like(query), query.shape[1] // key.shape[2]
    for row in range(len(used)):
        first, last, length = int(starts[row]), int(starts[row + 1]), int(used[row])
        assert last - first <= max_q
        assert length <= max_k
        keys, values = (
            cache[tables[row].long()].flatten(0, 1)[:length].repeat_interleave(shared, dim=1).double()
            for cache in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query[first:last].double(), keys) * given.arguments["scale"]
        own = torch.arange(length - (last - first), length)[:, None]
        place = torch.arange(length)
        seen = place <= own + (window[1] if window[1] >= 0 else length)
        if window[0] >= 0:
            seen &= place >= own - window[0]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[first:last] = torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype)
    return out
