"""Choosing tokens with the compiled kernel."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

import torch
from torch import Tensor

from kernels.compiled import TYPES, Arguments, Library
from kernels.sampling.penalties import OUTSIDE
from kernels.sampling.row import SamplingRow

ARGUMENTS = Arguments("sample", "type rows vocab row token")
"""`SamplingArguments` of csrc/kernels.h."""

ROW = Struct("q4dq3d3q")
"""`SamplingRow` of csrc/kernels.h."""


def sample_compiled(kernels: Library, logits: Tensor, numbers: Sequence[int], rows: Sequence[SamplingRow]) -> Tensor:
    """`sample` for logits [R, vocab] in bf16 or fp32 on the CPU, the last dimension contiguous."""
    packed = bytearray(len(rows) * ROW.size)
    start, stride = logits.data_ptr(), logits.stride(0) * logits.itemsize
    for place, (number, row) in enumerate(zip(numbers, rows, strict=True)):
        seen, times = row.seen, row.times
        count = 0 if seen is None or times is None else len(seen)
        ROW.pack_into(
            packed,
            place * ROW.size,
            start + number * stride,
            row.scale,
            row.top_p,
            row.min_p,
            row.uniform,
            row.top_k,
            row.repetition,
            row.presence,
            row.frequency,
            0 if seen is None else seen.data_ptr(),
            0 if times is None else times.data_ptr(),
            count,
        )
    tokens = torch.empty(len(rows), dtype=torch.int64)
    failed = kernels.call(
        ARGUMENTS,
        type=TYPES[logits.dtype],
        rows=len(rows),
        vocab=logits.shape[1],
        row=torch.frombuffer(packed, dtype=torch.uint8).data_ptr(),
        token=tokens.data_ptr(),
    )
    if failed:
        raise IndexError(OUTSIDE)
    return tokens
