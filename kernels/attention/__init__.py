"""Causal attention of a mixed prefill and decode batch over a paged key/value cache."""

from kernels.attention.batch import AttentionBatch
from kernels.attention.dispatch import paged_attention
from kernels.attention.kv import write_kv

__all__ = ["AttentionBatch", "paged_attention", "write_kv"]
