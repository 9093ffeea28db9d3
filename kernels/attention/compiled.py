"""`paged_attention` on the CPU with the compiled kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention.batch import AttentionBatch
from kernels.compiled import TYPES, Arguments, Library

ARGUMENTS = Arguments(
    "paged_attention",
    "type heads kv_heads dim block_size scale:d softcap:d "
    "query query_stride keys values out rows row_count tables table_stride blocks",
)
"""`AttentionArguments` of csrc/kernels.h."""


def paged_attention_compiled(
    kernels: Library,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """Attention that reads the blocks of the cache, with sums in fp32.

    Each query token is computed by itself. On AMX the tokens of a prompt are computed together, and their weights are
    rounded to bf16.

    A token's result is the same to the last bit alone and in any batch, decoded or computed in a prompt of any
    chunks, on any number of threads. Also the faster way for prompts: on two cores of an AMD EPYC a prompt of 512
    tokens took 3.8 ms, torch's attention with its mask 10.6 (`python -m benchmarks.attention`).

    Shapes and semantics are those of `paged_attention`, in bf16 or fp32.

    Raises:
        IndexError: a block outside the cache.
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    heads, dim = query.shape[1:]
    if query.stride(2) != 1 or query.stride(1) != dim:
        query = query.contiguous()
    kernels.call(
        ARGUMENTS,
        type=TYPES[query.dtype],
        heads=heads,
        kv_heads=key_cache.shape[2],
        dim=dim,
        block_size=key_cache.shape[1],
        scale=scale,
        softcap=softcap or 0.0,
        query=query.data_ptr(),
        query_stride=query.stride(0),
        keys=key_cache.data_ptr(),
        values=value_cache.data_ptr(),
        out=out.data_ptr(),
        rows=batch.rows.data_ptr(),
        row_count=batch.tokens,
        tables=batch.block_tables.data_ptr(),
        table_stride=batch.block_tables.stride(0),
        blocks=key_cache.shape[0],
    )
    return out
