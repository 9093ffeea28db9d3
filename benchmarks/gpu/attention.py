"""Paged attention against its reference, which kernels run it, and its time by the bytes of its keys and values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.layers import relative
from benchmarks.gpu.report import Value, bounded, measure, rounded
from kernels.attention import AttentionBatch, PaddedDecodes, paged_attention
from kernels.attention.reference import paged_attention_reference

BOUND = 1e-2
BLOCK_SIZES = (256, 16)
"""What torch's paged attention takes, and what is gathered for the scaled-dot-product attention."""


@dataclass(frozen=True)
class Heads:
    """Query heads, key heads, and the size of each."""

    query: int
    kv: int
    dim: int


FAMILIES = {"qwen": Heads(14, 2, 64), "llama": Heads(32, 8, 128), "without_groups": Heads(8, 8, 64)}


def run(clock: Clock) -> None:
    """Tell errors, names of kernels and times."""
    steps = {
        "decode": ([5, 64, 100, 333], [1] * 4),
        "prompts": ([40, 130], [40, 100]),
        "both": ([70, 9, 33], [1, 9, 1]),
    }
    for size, (name, heads) in itertools.product(BLOCK_SIZES, FAMILIES.items()):
        for what, (contexts, queries) in steps.items():
            for window in (None, 32):
                key = f"error_{name}_{what}_blocks_of_{size}" + ("" if window is None else "_window")
                bounded(key, BOUND, partial(_error, clock, heads, size, contexts, queries, window))
        bounded(f"error_{name}_captured_blocks_of_{size}", BOUND, partial(_error_padded, clock, heads, size))
    if clock.on_gpu:
        for size in BLOCK_SIZES:
            measure(f"kernels_blocks_of_{size}", partial(_names, clock, size))
        measure("same_bits_in_any_company", partial(_company, clock))
    grid = [(1, 1024), (8, 1024), (64, 1024), (64, 4096), (1, 16384)] if clock.on_gpu else [(2, 40)]
    for (sequences, context), size, name in itertools.product(grid, BLOCK_SIZES, ("llama", "qwen")):
        key = f"{name}_{sequences}x{context}_blocks_of_{size}"
        measure(key, partial(_speed, clock, FAMILIES[name], size, sequences, context))
    measure("new_lengths", partial(_new_lengths, clock))


def _case(
    heads: Heads, size: int, contexts: list[int], queries: list[int], seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, keys, values and block tables, the blocks in random order."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [-(-context // size) for context in contexts]
    order = torch.randperm(sum(blocks) + 1, generator=generator).to(torch.int32)
    tables = torch.zeros(len(contexts), max(blocks), dtype=torch.int32)
    for row, (count, end) in enumerate(zip(blocks, itertools.accumulate(blocks), strict=True)):
        tables[row, :count] = order[end - count : end]
    cache = (torch.randn(len(order), size, heads.kv, heads.dim, generator=generator) for _ in range(2))
    query = torch.randn(sum(queries), heads.query, heads.dim, generator=generator).to(torch.bfloat16)
    keys, values = (one.to(torch.bfloat16) for one in cache)
    return query, keys, values, tables


def _error(clock: Clock, heads: Heads, size: int, contexts: list[int], queries: list[int], window: int | None) -> float:
    query, keys, values, tables = _case(heads, size, contexts, queries)
    plan = AttentionBatch.build(tables, contexts, queries, size, window)
    want = paged_attention_reference(query.double(), keys, values, plan, heads.dim**-0.5)
    query, keys, values, tables = (one.to(clock.device) for one in (query, keys, values, tables))
    plan = AttentionBatch.build(tables, contexts, queries, size, window)
    return rounded(relative(paged_attention(query, keys, values, plan), want))


def _error_padded(clock: Clock, heads: Heads, size: int) -> float:
    """The plan of captured steps, whose tables have room for longer contexts."""
    contexts = [3, 17, 200, 255]
    query, keys, values, tables = _case(heads, size, contexts, [1] * 4)
    plan = AttentionBatch.build(tables, contexts, [1] * 4, size)
    want = paged_attention_reference(query.double(), keys, values, plan, heads.dim**-0.5)
    wide = torch.zeros(4, -(-512 // size), dtype=torch.int32)
    wide[:, : tables.shape[1]] = tables
    query, keys, values, wide = (one.to(clock.device) for one in (query, keys, values, wide))
    padded = PaddedDecodes.over(wide, torch.tensor(contexts).to(clock.device), 512, size)
    return rounded(relative(paged_attention(query, keys, values, padded), want))


def _decoding(
    clock: Clock, heads: Heads, size: int, contexts: list[int]
) -> tuple[tuple[Tensor, Tensor, Tensor], PaddedDecodes]:
    query, keys, values, tables = (one.to(clock.device) for one in _case(heads, size, contexts, [1] * len(contexts)))
    plan = PaddedDecodes.over(tables, torch.tensor(contexts).to(clock.device), max(contexts), size)
    return (query, keys, values), plan


def _names(clock: Clock, size: int) -> Value:
    tensors, plan = _decoding(clock, FAMILIES["qwen"], size, [256] * 8)
    paged_attention(*tensors, plan)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        paged_attention(*tensors, plan)
        clock.wait()
    return [event.key[:60] for event in profile.key_averages()]


def _company(clock: Clock) -> bool:
    """A sequence that decodes alone and with longer ones."""
    heads = FAMILIES["llama"]
    tensors, plan = _decoding(clock, heads, BLOCK_SIZES[0], [300, 5000, 40])
    together = paged_attention(*tensors, plan)[0]
    own = PaddedDecodes.over(plan.block_tables[:1, :2].contiguous(), plan.lengths[:1], 512, BLOCK_SIZES[0])
    if not torch.equal(together, paged_attention(tensors[0][:1], *tensors[1:], own)[0]):
        raise ArithmeticError("a sequence gets other bits alone than beside longer ones")
    return True


def _speed(clock: Clock, heads: Heads, size: int, sequences: int, context: int) -> Value:
    tensors, plan = _decoding(clock, heads, size, [context] * sequences)
    taken = clock.microseconds([partial(paged_attention, *tensors, plan)] * 4)
    nbytes = 4 * sequences * context * heads.kv * heads.dim
    return {"us": rounded(taken), "tb_s": rounded(nbytes / taken / 1e6)}


def _new_lengths(clock: Clock) -> Value:
    """Milliseconds of a call whose key length no call before it had, and of the same call again."""
    fresh: list[float] = []
    again: list[float] = []
    for number in range(8 if clock.on_gpu else 2):
        contexts = [701 + number + 40 * row for row in range(8 if clock.on_gpu else 1)]
        query, keys, values, tables = _case(FAMILIES["qwen"], BLOCK_SIZES[0], contexts, [1] * len(contexts))
        query, keys, values = (one.to(clock.device) for one in (query, keys, values))
        plan = AttentionBatch.build(tables.to(clock.device), contexts, [1] * len(contexts), BLOCK_SIZES[0])
        for times in (fresh, again):
            times.append(clock.seconds(partial(paged_attention, query, keys, values, plan), rounds=1) * 1e3)
    return {"new_ms": rounded(sorted(fresh[1:])[len(fresh) // 2 - 1]), "seen_ms": rounded(min(again))}
