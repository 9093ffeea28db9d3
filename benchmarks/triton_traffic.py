"""How many bytes `sparse_kernel` moves, counted from its own loads and stores under Triton's interpreter.

Memory moves in sectors of 32 bytes. Columns and values of the experts count at every load of every program. Tokens and
plan count once, however often they are loaded: they are a few megabytes and stay in a card's second-level cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.expert_linear import ExpertBank, ExpertBatch

SECTOR = 32
TRACED_ROWS = 256
"""Rows of the layer that are interpreted: every tile of rows does the same."""
EXPERTS = 8
DENSITY = 0.01


@dataclass(frozen=True)
class Layer:
    """What a kernel is run on.

    Attributes:
        rows: N.
        columns: K.
        tokens: T, shared evenly by eight experts.
        dtype: of tokens, as Triton writes it.
        values: how the experts are stored, as Triton writes it.
    """

    rows: int
    columns: int
    tokens: int
    dtype: str
    values: str


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "i8": torch.int8}


class Trace:
    """Counts the sectors of some tensors that a kernel touches."""

    def __init__(self, operands: dict[str, Tensor]) -> None:
        self._ranges = {name: (one.data_ptr(), one.data_ptr() + one.nbytes) for name, one in operands.items()}
        self._sectors = {name: -(-one.nbytes // SECTOR) + 1 for name, one in operands.items()}
        self._touched: dict[tuple[str, str], Any] = {}
        self._streamed = 0

    def note(self, kind: str, addresses: Any, mask: Any) -> None:
        """One load or store, which is its kind."""
        wanted = np.asarray(addresses)[np.asarray(mask, dtype=bool)].ravel().astype(np.int64)
        if not len(wanted):
            return
        name = next(name for name, (start, end) in self._ranges.items() if start <= wanted[0] < end)
        sectors = np.unique((wanted - self._ranges[name][0]) // SECTOR)
        if name in {"index", "value"}:
            self._streamed += len(sectors)
        else:
            touched = self._touched.setdefault((kind, name), np.zeros(self._sectors[name], bool))
            touched[sectors] = True

    @property
    def bytes(self) -> int:
        """Bytes moved so far."""
        return SECTOR * (self._streamed + sum(int(touched.sum()) for touched in self._touched.values()))


def traced_ratio(layer: Layer) -> float:
    """Bytes that a kernel moves by those it must move: each operand once, and of experts those of the batch."""
    from triton.runtime import interpreter

    from kernels.expert_linear import sparse_triton as kernels
    from kernels.expert_linear.onto import Onto

    x, y, bank, batch = _operands(layer, TRACED_ROWS)
    operands = {"x": x, "y": y, "index": bank.index, "value": bank.value}
    operands |= {name: getattr(batch.tiles, name) for name in ("table", "token", "gate")}
    if bank.scale is not None:
        operands["scale"] = bank.scale
    trace = Trace(operands)
    builder = interpreter.interpreter_builder
    load, store = builder.create_masked_load, builder.create_masked_store

    def traced_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        trace.note("load", pointers.data, mask.data)
        return load(pointers, mask, *rest)

    def traced_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        trace.note("store", pointers.data, mask.data)
        return store(pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = traced_load, traced_store
    try:
        kernels.launch_sparse(x, Onto.of(y, y, None, 0, 1), bank, batch.tiles, 0)
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
    return trace.bytes / ideal_bytes(layer, TRACED_ROWS)


def ideal_bytes(layer: Layer, rows: int | None = None) -> int:
    """Bytes that must be moved for a layer of that many rows."""
    rows, size = rows or layer.rows, DTYPES[layer.dtype].itemsize
    entries = max(1, round(DENSITY * layer.columns))
    scale = 4 if layer.values == "i8" else 0
    experts = EXPERTS * rows * (entries * (2 + DTYPES[layer.values].itemsize) + scale)
    inputs, outputs = layer.tokens * layer.columns * size, layer.tokens * rows * size
    return experts + inputs + outputs


def _operands(layer: Layer, rows: int) -> tuple[Tensor, Tensor, ExpertBank, ExpertBatch]:
    dtype, columns = DTYPES[layer.dtype], layer.columns
    entries = max(1, round(DENSITY * columns))
    bank = ExpertBank.allocate(EXPERTS, rows, columns, entries, DTYPES[layer.values])
    stride = columns // entries
    bank.index.copy_(torch.randint(stride, bank.index.shape) + stride * torch.arange(entries)[:, None])
    batch = ExpertBatch.from_slots([token % EXPERTS for token in range(layer.tokens)])
    x, y = torch.zeros(layer.tokens, columns, dtype=dtype), torch.zeros(layer.tokens, rows, dtype=dtype)
    return x, y, bank, batch


def ratios(layers: list[Layer]) -> list[float]:
    """`traced_ratio` of some layers, in a process whose kernels are interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "benchmarks.triton_traffic", json.dumps([asdict(layer) for layer in layers])]
    ran = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: list[float] = json.loads(ran.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps([traced_ratio(Layer(**layer)) for layer in json.loads(sys.argv[1])]))
