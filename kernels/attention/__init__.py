"""Causal attention of a mixed prefill and decode batch over a paged key/value cache."""

from kernels.attention.batch import AttentionBatch, PaddedDecodes
from kernels.attention.dispatch import paged_attention
from kernels.attention.head_norm import HeadNorm
from kernels.attention.kv import write_kv
from kernels.attention.rotary import rotate, rotate_into_cache

__all__ = ["AttentionBatch", "HeadNorm", "PaddedDecodes", "paged_attention", "rotate", "rotate_into_cache", "write_kv"]
