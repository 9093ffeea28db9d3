"""Merging the backbone in a stream: a few tensors in memory at a time, whatever the number of models."""

import json
import threading
from collections.abc import Callable, Collection, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from merge.bundle import available_cores
from merge.checkpoint import SHARD_BYTES, Checkpoint, CheckpointError, CheckpointWriter, TensorSpec, copy_settings
from merge.methods import BoundMethod, TaskVectors
from merge.methods.vectors import blocks, row_blocks
from merge.parallel import fitting, in_order
from merge.ray_pool import RayPool
from merge.task_vectors import is_unchanged, task_vectors

BYTES_AN_ENTRY = 24
"""Memory that merging takes for each entry of what is in memory: the base, a vector, and the method's sums."""

PIECE = 1 << 20
"""Elements that a task vector is added by: with an eighth of it, two threads wait for Python more than they compute."""


def write_backbone(
    directory: Path,
    base: Checkpoint,
    fine_tunes: Mapping[str, Checkpoint],
    method: BoundMethod,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
    on_tensor: Callable[[], None] = lambda: None,
    merged: Collection[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    threads: int | None = None,
    pool: RayPool | None = None,
    by_rows: Callable[[str], bool] = lambda _: False,
) -> None:
    """Merge fine-tunes and write the result as a Hugging Face directory, with the base's config and tokenizer.

    The result does not depend on the order of `fine_tunes`, on the sizes of shards, or on the number and the processors
    of threads: every tensor is computed by one thread.

    Args:
        directory: an existing, empty directory.
        base: θ₀.
        fine_tunes: θ_k by name, compatible with the base.
        method: (name, base tensor, task vectors) to merged tensor.
        dtype: arithmetic.
        out_dtype: stored; None: each tensor in the base's own.
        on_tensor: called after each tensor.
        merged: names of the tensors to merge; None: all. Others, and buffers, are copied from the base.
        shard_bytes: most bytes of a file.
        threads: tensors merged at a time; None: as many as there are cores and room in memory for.
        pool: Ray's workers, which then merge the tensors in place of threads.
        by_rows: whether the method merges the rows of a tensor independently of each other, by its name. Of such
            tensors, and of those that no fine-tune changes, some rows are in memory at a time.

    Raises:
        CheckpointError: a tensor holds values that are not finite, or the merged one does.
    """
    names = base.tensors.keys() if merged is None else set(merged)
    stored = {name: out_dtype or info.dtype for name, info in base.tensors.items() if name in names}
    specs = [
        TensorSpec(name, stored.get(name, info.dtype), info.shape)
        for name, info in (*base.tensors.items(), *base.buffers.items())
    ]

    scratch = _Scratch(dtype)

    def pieces_of(name: str) -> list[slice | None]:
        piecewise = by_rows(name) or all(is_unchanged(name, base, item) for item in fine_tunes.values())
        return row_blocks(base.tensors[name].shape) if piecewise else [None]

    def compute(name: str) -> Tensor:
        if name not in stored:
            return base.tensor(name)
        shape, pieces = base.tensors[name].shape, pieces_of(name)
        if pieces == [None]:
            return merged_rows(name, None)
        whole = torch.empty(shape, dtype=stored[name])
        for rows in pieces:
            whole[rows] = merged_rows(name, rows)
        return whole

    def merged_rows(name: str, rows: slice | None) -> Tensor:
        origin = base.tensor(name, dtype, rows=rows)
        return method(name, origin, _vectors(name, base, origin, fine_tunes, scratch, rows)).to(stored[name])

    if threads is None and pool is None:
        sizes = {name: prod(base.tensors[name].shape) for name in stored}
        whole = max((size for name, size in sizes.items() if pieces_of(name) == [None]), default=0)
        largest = max(sizes.values(), default=0)
        threads = fitting(available_cores(), max(BYTES_AN_ENTRY * whole, dtype.itemsize * largest), base.device)
    # Not flushed here: the bundle is, as a whole, and until then the disk writes while experts are cut.
    with CheckpointWriter(directory, specs, shard_bytes, flush=False) as writer:
        for name, tensor in in_order(writer.order, compute, threads, pool):
            try:
                writer.write(name, tensor)
            except CheckpointError:
                for fine_tune in fine_tunes.values() if name in stored else ():
                    fine_tune.tensor(name)  # names the fine-tune whose values are not finite
                raise
            on_tensor()
    copy_settings(base.path, directory)
    if out_dtype is not None:
        _declare(directory / "config.json", out_dtype)


class _Scratch(threading.local):
    """A buffer for each thread, kept from tensor to tensor: fresh memory costs more to get than a subtraction."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._flat = torch.empty(0, dtype=dtype)

    def __reduce__(self) -> tuple[type["_Scratch"], tuple[torch.dtype]]:
        return _Scratch, (self._flat.dtype,)  # a task's process has a separate buffer

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of this one's shape, with anything in it."""
        if self._flat.numel() < tensor.numel():
            self._flat = tensor.new_empty(tensor.numel())
        return self._flat[: tensor.numel()].view(tensor.shape)


def _vectors(
    name: str,
    base: Checkpoint,
    origin: Tensor,
    fine_tunes: Mapping[str, Checkpoint],
    scratch: _Scratch,
    rows: slice | None,
) -> TaskVectors:
    buffer, dtype = scratch.like(origin), origin.dtype

    def add(task: str, total: Tensor, weight: float) -> None:
        # Piece by piece the difference never leaves the cache, and what is not finite makes the sum so: one pass.
        tuned, flat = fine_tunes[task].tensor(name, dtype, check=False, rows=rows).flatten(), buffer.flatten()
        start, sums = origin.flatten(), total.view(-1)
        for piece in blocks(len(sums), PIECE):
            difference = torch.sub(tuned[piece], start[piece], out=flat[: piece.stop - piece.start])
            sums[piece].add_(difference, alpha=weight)

    def read(task: str) -> Tensor:
        return torch.sub(fine_tunes[task].tensor(name, dtype, rows=rows), origin, out=buffer)

    return task_vectors(name, base, fine_tunes, origin, read, add, rows)


def _declare(path: Path, dtype: torch.dtype) -> None:
    """Make config.json say the stored dtype, under whichever of its two historical keys it uses."""
    config = json.loads(path.read_bytes())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n")
