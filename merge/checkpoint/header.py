"""The header of a safetensors file, read with suspicion.

Format (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length n, n bytes of JSON, then the data.
Each JSON entry gives a dtype, a shape and the [begin, end) of its bytes, counted from the end of the header.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from merge.checkpoint.error import CheckpointError, Faults

HEADER_LIMIT = 100_000_000
"""Largest header in bytes, the limit of the reference implementation."""

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the dtypes that can be merged."""

BUFFER_DTYPES = {"I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool}
"""Dtypes of buffers, position numbers and masks, which are copied."""

DTYPES = {**FLOAT_DTYPES, **BUFFER_DTYPES}

PACKED = ("qweight", "qzeros", "g_idx", "weight", "weight_packed")
"""Last parts of names under which quantisers store several small numbers in an integer."""

_OTHER_BYTES = (
    "U8", "I8", "F4", "F6_E2M3", "F6_E3M2", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16", "U16",
    "U32", "U64", "C64",
)  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """The header's entry of one tensor.

    Attributes:
        name: the tensor's name.
        dtype: one of `DTYPES`' values.
        shape: its sizes.
        file: the shard that holds it.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path, packed: bool = False) -> dict[str, TensorInfo]:
    """Read and validate a safetensors header without touching the data.

    Args:
        path: the file.
        packed: whether integers may hold several small numbers of a quantised weight.

    Returns:
        The tensors by name, in the file's order.

    Raises:
        CheckpointError: unreadable, truncated or overlong file, broken JSON, a name twice, unknown or quantised dtype,
            offsets that overlap, leave holes or disagree with shape and dtype; all faults of the tensors are reported.
    """
    try:
        return _read_header(path, packed)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _read_header(path: Path, packed: bool) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise CheckpointError(
                f"{path}: not a safetensors file: its header would take {length} of {size} bytes "
                "(truncated, a Git LFS pointer, or another format)"
            )
        entries = _parse(file.read(length), path)
    faults = Faults()
    spans = []
    for name, entry in entries.items():
        with faults.gathered():
            spans.append((*_span(name, entry, path, packed), name))
    faults.settle()
    expected = 0
    for begin, end, name in sorted(spans):
        if begin != expected:
            what = "overlaps the tensor before it" if begin < expected else "leaves a hole before it"
            faults.found.append(f"{path}: {name} starts at byte {begin} and {what}; it should start at {expected}")
        expected = max(expected, end)
    faults.settle()
    if 8 + length + expected != size:
        raise CheckpointError(
            f"{path}: the file has {size} bytes; its header describes {8 + length + expected} (truncated or damaged)"
        )
    return {
        name: TensorInfo(name, DTYPES[entry["dtype"]], tuple(entry["shape"]), path) for name, entry in entries.items()
    }


def _parse(raw: bytes, path: Path) -> dict[str, dict[str, Any]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{path}: the header names {twice!r} twice")
        return found

    try:
        entries = json.loads(raw.decode(), object_pairs_hook=once)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON: {error}") from error
    if isinstance(entries, dict) and entries.get("__metadata__", {}) is None:
        del entries["__metadata__"]  # some writers put null there, and safetensors reads it
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise CheckpointError(f"{path}: the header is not a table of tensors")
    entries.pop("__metadata__", None)
    return entries


def _span(name: str, entry: dict[str, Any], path: Path, packed: bool) -> tuple[int, int]:
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in DTYPES and dtype not in _OTHER_BYTES:
        raise CheckpointError(f"{path}: {name} has the unknown dtype {dtype!r}")
    if dtype in _OTHER_BYTES or (not packed and dtype in BUFFER_DTYPES and name.rpartition(".")[2] in PACKED):
        raise CheckpointError(
            f"{path}: {name} is {dtype}: quantised and integer tensors cannot be merged; "
            "give the float16, bfloat16 or float32 checkpoint"
        )
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise CheckpointError(f"{path}: {name} has shape {shape!r} and data_offsets {offsets!r}; both must be counts")
    begin, end = offsets
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise CheckpointError(f"{path}: {name} {dtype} {shape} needs {expected} bytes; the header gives {end - begin}")
    return begin, end


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
