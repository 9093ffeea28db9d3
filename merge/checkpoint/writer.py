"""Writing a model directory in a stream: shards are planned from the shapes, then filled one tensor at a time."""

import json
import math
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from torch import Tensor

from merge.bundle.shards import INDEX, SINGLE
from merge.checkpoint.error import CheckpointError
from merge.checkpoint.finite import count_not_finite
from merge.checkpoint.header import DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
SHARD_BYTES = 5_000_000_000
"""Default size limit of a shard, the Hub's habit."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to come: its name, its dtype in the file and its shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


class CheckpointWriter:
    """Context manager that writes safetensors shards and, if there are several, their index.

    Tensors must come in the order of `order`. One tensor is held at a time. Shards get their names when all of them are
    complete and flushed; leaving the block by an exception removes what was written.
    """

    def __init__(
        self, directory: Path, specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES, flush: bool = True
    ) -> None:
        """Plan the shards.

        Args:
            directory: an existing directory.
            specs: every tensor to come, in any order.
            shard_bytes: size limit of a shard; a larger tensor gets a separate shard.
            flush: wait until the shards are on disk before they get their names; not needed if the whole directory is
                flushed later.

        Raises:
            CheckpointError: no tensor, one twice, or a dtype that a checkpoint cannot hold.
        """
        if shard_bytes <= 0 or not specs:
            raise CheckpointError(f"a checkpoint needs tensors (got {len(specs)}) and a positive shard size")
        if len({spec.name for spec in specs}) != len(specs):
            raise CheckpointError("a checkpoint cannot hold one tensor name twice")
        for spec in specs:
            if spec.dtype not in _DTYPE_NAMES:
                raise CheckpointError(f"{spec.name}: {spec.dtype} cannot be stored; use a floating-point dtype")
        self._directory = directory
        self._flush = flush
        self._shards = _plan(specs, shard_bytes)
        self._stream = self._fill()
        self._current: tuple[TensorSpec, BinaryIO] | None = None

    @property
    def order(self) -> tuple[str, ...]:
        """The names, in the order in which `write` takes them."""
        return tuple(spec.name for shard in self._shards for spec in shard)

    def __enter__(self) -> Self:
        self._current = next(self._stream)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor, cast to its planned dtype.

        Raises:
            CheckpointError: out of order, another shape than planned, or values that are not finite after the cast.
        """
        if self._current is None:
            raise CheckpointError(f"{name} was not planned: every tensor has been written")
        spec, file = self._current
        if name != spec.name or tuple(tensor.shape) != spec.shape:
            raise CheckpointError(
                f"expected {spec.name} {list(spec.shape)} next, not {name} {list(tensor.shape)}: follow `order`"
            )
        if not spec.dtype.is_floating_point and tensor.dtype != spec.dtype:
            raise CheckpointError(f"{name} is {tensor.dtype}; {spec.dtype} was planned, and a buffer is not cast")
        stored = tensor.detach().to(device="cpu", dtype=spec.dtype).contiguous()
        bad = count_not_finite(stored)
        if bad:
            raise CheckpointError(
                f"{name}: {bad} of {stored.numel()} merged values are NaN or infinite in {spec.dtype}; "
                "use bfloat16 or float32, or smaller coefficients"
            )
        file.write(stored.reshape(-1).view(torch.uint8).numpy().data)
        self._current = next(self._stream, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._stream.close()
            for number in range(len(self._shards)):
                self._partial(number).unlink(missing_ok=True)

    def _partial(self, number: int) -> Path:
        return self._directory / f".shard-{number}.partial-{os.getpid()}"

    def _fill(self) -> Generator[tuple[TensorSpec, BinaryIO]]:
        for number, shard in enumerate(self._shards):
            with self._partial(number).open("wb") as file:
                file.write(_header(shard))
                for spec in shard:
                    yield spec, file
                file.flush()
                if self._flush:
                    os.fsync(file.fileno())

    def _finish(self) -> None:
        if self._current is not None:
            raise CheckpointError(f"the checkpoint is incomplete: {self._current[0].name} was never written")
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self._shards):
            name = SINGLE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._partial(number).replace(self._directory / name)
            weight_map.update({spec.name: name for spec in shard})
        if count > 1:
            total = sum(spec.nbytes for shard in self._shards for spec in shard)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self._directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _plan(specs: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = []
    room = 0
    for spec in sorted(specs, key=lambda spec: spec.name):
        if not shards or spec.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(spec)
        room -= spec.nbytes
    # Wide dtypes first keeps every tensor aligned to its own size inside the file.
    return [sorted(shard, key=lambda spec: (-spec.dtype.itemsize, spec.name)) for shard in shards]


def _header(shard: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for spec in shard:
        end = begin + spec.nbytes
        entries[spec.name] = {
            "dtype": _DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
