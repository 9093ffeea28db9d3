"""Attention over the paged cache against gathering the blocks and torch's scaled-dot-product attention.

Both are timed call by call in turn, over enough copies of the cache that none stays in the processor's caches. Figures
are medians of single calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.expert_linear import Call, Clock
from kernels.attention import AttentionBatch, paged_attention
from kernels.attention.cpu import paged_attention_torch
from kernels.compiled import ISAS, library

HEADS, KV_HEADS, HEAD_DIM = 14, 2, 64
"""A 0.5 B model's."""
BLOCK = 16
DECODING = tuple((sequences, context, 1) for context in (128, 1024, 2048) for sequences in (1, 8))
PREFILLING = ((1, 128, 128), (1, 512, 512), (1, 2048, 512))
COLD_BYTES = 128 << 20


@dataclass(frozen=True)
class Case:
    """One variant's figures.

    Attributes:
        sequences: in the batch.
        context: tokens of each sequence in the cache.
        queries: tokens of each sequence in the step.
        dtype: of queries and cache.
        mode: torch (blocks gathered, then its attention) or ours.
        us: microseconds a call, median.
        ratio: us by torch's.
        floor_us: the time that the keys and values take at the read bandwidth of the run.
    """

    sequences: int
    context: int
    queries: int
    dtype: str
    mode: str
    us: float
    ratio: float
    floor_us: float


def measure_case(sequences: int, context: int, queries: int, dtype: torch.dtype, rounds: int) -> list[Case]:
    """Both variants of one batch."""
    blocks = -(-context // BLOCK) * sequences
    bytes_read = 2 * sequences * context * KV_HEADS * HEAD_DIM * dtype.itemsize
    copies = min(64, max(2, COLD_BYTES // bytes_read))
    tables = torch.randperm(blocks).view(sequences, -1).to(torch.int32)
    batch = AttentionBatch.build(tables, [context] * sequences, [queries] * sequences, BLOCK)
    query = torch.randn(sequences * queries, HEADS, HEAD_DIM).to(dtype)
    shape = (blocks, BLOCK, KV_HEADS, HEAD_DIM)
    caches = [(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for _ in range(copies)]
    buffer = torch.ones(COLD_BYTES // 8, dtype=torch.int64)
    variants: dict[str, Call] = {
        "torch": lambda copy: paged_attention_torch(query, *caches[copy], batch, HEAD_DIM**-0.5),
        "ours": lambda copy: paged_attention(query, *caches[copy], batch),
        "read": partial(_read, buffer),
    }
    times = Clock("cpu").interleaved(variants, copies, max(1, rounds // copies))
    floor = bytes_read / (buffer.nbytes / times.pop("read"))
    name = str(dtype).removeprefix("torch.")
    return [
        Case(sequences, context, queries, name, mode, round(us, 1), round(us / times["torch"], 4), round(floor, 1))
        for mode, us in times.items()
    ]


def _read(buffer: Tensor, copy: int) -> Tensor:
    del copy  # larger than the caches by itself
    return buffer.sum()


def summarise(cases: list[Case]) -> dict[str, float]:
    """Medians of ours by torch's, and of ours by the floor while decoding."""
    ours = [case for case in cases if case.mode == "ours"]

    def median(figure: Callable[[Case], float], chosen: list[Case]) -> float:
        return round(statistics.median(map(figure, chosen)), 4)

    decoding, prefilling = [c for c in ours if c.queries == 1], [c for c in ours if c.queries > 1]
    return {
        "decode_vs_torch": median(lambda case: case.ratio, decoding),
        "decode_vs_floor": median(lambda case: case.us / case.floor_us, decoding),
        "prefill_vs_torch": median(lambda case: case.ratio, prefilling),
    }


def measure(rounds: int) -> dict[str, Any]:
    """Run the benchmark: the document that `--json` prints."""
    kernels = library()
    cases = [
        case
        for dtype in (torch.bfloat16, torch.float32)
        for batch in DECODING + PREFILLING
        for case in measure_case(*batch, dtype, rounds)
    ]
    return {
        "threads": torch.get_num_threads(),
        "kernels": ISAS[kernels.isa] if kernels else "torch",
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "block_size": BLOCK,
        "cases": [asdict(case) for case in cases],
        "summary": summarise(cases),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=200, help="calls of each variant, at least")
    options = parser.parse_args()
    report = measure(options.rounds)
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['kernels']}, {report['threads']} threads")
    print(
        f"{'dtype':>9} {'sequences':>9} {'context':>7} {'queries':>7} {'mode':>5} {'us':>9} {'ratio':>6} {'floor':>8}"
    )
    for case in report["cases"]:
        print(
            f"{case['dtype']:>9} {case['sequences']:>9} {case['context']:>7} {case['queries']:>7} {case['mode']:>5} "
            f"{case['us']:>9.1f} {case['ratio']:>6.3f} {case['floor_us']:>8.1f}"
        )
    for name, figure in report["summary"].items():
        print(f"{name}: {figure}")


if __name__ == "__main__":
    main()
