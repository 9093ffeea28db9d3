"""`paged_attention` on a GPU: torch's FlashAttention over sequences of different lengths, straight from the blocks."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from kernels.attention.batch import AttentionBatch

_log = logging.getLogger("overtone")

BLOCK = 256
"""The tokens of a block must be a multiple of this: FlashAttention 2 requires it (torch 2.13, `flash_api.cpp`)."""

MOST_HEAD_DIM = 256

DECODE_SPLITS = 8
"""Parts in which the keys of a sequence that decodes are read at once.

A fixed number, so that a result does not depend on the other sequences of a step: what torch would choose follows the
longest of them. Chosen, not measured. Prompts have enough queries to fill a GPU and are not split.
"""


def attends(device: torch.device, dtype: torch.dtype, head_dim: int, block_size: int, softcap: float | None) -> bool:
    """Whether `paged_attention_varlen` takes such tensors."""
    return (
        on_device(device)
        and dtype in {torch.bfloat16, torch.float16}
        and softcap is None
        and head_dim % 8 == 0
        and head_dim <= MOST_HEAD_DIM
        and block_size % BLOCK == 0
    )


@cache
def on_device(device: torch.device) -> bool:
    """Whether a device has FlashAttention for a paged cache: an NVIDIA GPU from sm_80 on, if a call succeeds."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and answers(device)


def answers(device: torch.device) -> bool:
    """Whether torch attends to one token in one block of a device. A warning says why it does not."""
    from torch.nn.attention.varlen import varlen_attn

    query, cache = (
        torch.zeros(shape, dtype=torch.bfloat16, device=device) for shape in ((1, 2, 64), (1, BLOCK, 1, 64))
    )
    starts = torch.arange(2, dtype=torch.int32, device=device)
    length, table = starts[1:].clone(), starts[None, :1].contiguous()
    try:
        varlen_attn(
            query, cache, cache, starts, None, 1, BLOCK, scale=1.0, enable_gqa=True, seqused_k=length,
            block_table=table, num_splits=DECODE_SPLITS,
        )  # fmt: skip
    except (RuntimeError, TypeError) as error:
        _log.warning(
            "torch's FlashAttention does not take the KV cache on %s, whose blocks are gathered: %s", device, error
        )
        return False
    return True


def _window(batch: AttentionBatch) -> tuple[int, int]:
    """Keys to the left and to the right of a query's own that it sees, -1 for all.

    A single query is the last token of its sequence and sees all keys to its left. It is not called causal then, for
    FlashAttention puts the query heads that share a key head side by side only if nothing is masked.
    """
    if batch.window is not None:
        return batch.window - 1, 0
    return (-1, -1) if batch.most_queries == 1 else (-1, 0)


def paged_attention_varlen(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, batch: AttentionBatch, scale: float
) -> Tensor:
    """Prompts and sequences that decode in one call, without a copy of keys or values and without a mask.

    Shapes and semantics are those of `paged_attention`, for what `attends` allows.
    """
    from torch.nn.attention.varlen import varlen_attn  # registers operators, which a CPU needs none of

    attended = varlen_attn(
        query,
        key_cache,
        value_cache,
        batch.starts,
        None,
        batch.most_queries,
        batch.longest,
        scale=scale,
        window_size=_window(batch),
        enable_gqa=query.shape[1] != key_cache.shape[2],
        seqused_k=batch.lengths32,
        block_table=batch.block_tables,
        num_splits=DECODE_SPLITS if batch.most_queries == 1 else 1,
    )
    assert isinstance(attended, Tensor)
    return attended
