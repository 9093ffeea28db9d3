"""Reading a safetensors file whole, so that its digest and its tensors are those of the same bytes.

Nothing is memory-mapped: a file that another process truncates or overwrites in place would end the reader with SIGBUS.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from merge.bundle.errors import BundleError, MissingFileError, UnreadableFileError

_HEADER_LIMIT = 100_000_000
"""Bytes of the largest header, as in the reference implementation."""

_TICK = 0.05
"""Seconds within which two writes may leave the same modification time: Linux rounds it to a tick, 10 ms or less."""

_ATTEMPTS = 3


@dataclass(frozen=True)
class TensorFile:
    """The content of one safetensors file.

    Attributes:
        digest: SHA-256 of all bytes, in hex.
        metadata: the header's `__metadata__`.
        tensors: by name, each in separate memory.
    """

    digest: str
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]


def read_tensor_file(path: Path) -> TensorFile:
    """Read and validate a safetensors file. The file is opened once and its bytes are read once.

    Raises:
        MissingFileError: there is no such file.
        UnreadableFileError: it is not a regular file, may not be read, or another process keeps writing to it.
        BundleError: it is damaged: the header is invalid, or its size is not what the header says.
    """
    data = read_stable(path)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{path} is not a readable safetensors file: {error}") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return TensorFile(hashlib.sha256(data).hexdigest(), header.get("__metadata__") or {}, tensors)


def read_stable(path: Path) -> bytes:
    """The bytes of a safetensors file, read while no process wrote to it.

    Raises:
        As `read_tensor_file`; of the header, only the size that it implies is checked.
    """
    try:
        # Opening a pipe would wait for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            for _ in range(_ATTEMPTS):
                before = _settled(file, path)
                data = _read(file, before.st_size, path)
                after = os.fstat(file.fileno())
                if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
                    return data
    except FileNotFoundError as error:
        raise MissingFileError(f"no file at {path}") from error
    except OSError as error:
        raise UnreadableFileError(unreadable(path, error)) from error
    raise UnreadableFileError(f"{path} is being written to: write a copy and rename it into place")


def read_failure(path: Path, error: Exception) -> BundleError:
    """The error of a file that safetensors could not open, which calls a file without permission missing."""
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError:
        return MissingFileError(f"no file at {path}")
    except OSError as cause:
        return UnreadableFileError(unreadable(path, cause))
    return BundleError(f"{path} is not a readable safetensors file: {error}")


def unreadable(path: Path, error: OSError) -> str:
    """One line on why a file cannot be read. If permission is missing, it names the user of this process."""
    who = f" (this process runs as user id {os.geteuid()})" if isinstance(error, PermissionError) else ""
    return f"{path} cannot be read: {type(error).__name__}: {error.strerror or error}{who}"


def _settled(file: BinaryIO, path: Path) -> os.stat_result:
    """The file's state, once its last change is old enough for another one to alter the modification time."""
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableFileError(f"{path} is not a regular file")
    if abs(time.time() - found.st_mtime) < _TICK:
        time.sleep(_TICK)
        found = os.fstat(file.fileno())
    return found


def _read(file: BinaryIO, size: int, path: Path) -> bytes:
    """Read the number of bytes that the header describes.

    Raises:
        BundleError: the file has another size than that.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
        raise BundleError(
            f"{path} is not a readable safetensors file: its header would take {length} of {size} bytes "
            "(truncated, a Git LFS pointer, or another format)"
        )
    try:
        entries = json.loads(file.read(length))
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} is not a readable safetensors file: its header is invalid: {error}") from error
    described = 8 + length + max(ends, default=0)
    if described != size:
        raise BundleError(
            f"{path} is not a readable safetensors file: it has {size} bytes and its header describes {described} "
            "(truncated or damaged)"
        )
    file.seek(0)
    data = file.read(described)
    if len(data) != described:
        raise BundleError(f"{path} is not a readable safetensors file: it was truncated while it was read")
    return data
