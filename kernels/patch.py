"""Put one expert's residual into a weight in place, and take it out again to the last bit."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.compiled import TYPES, Arguments, Library, elementwise

PATCH_ARGUMENTS = Arguments(
    "patch",
    "type value_type index_bytes position_bytes rows columns entries index value weight starts position original",
)
UNPATCH_ARGUMENTS = Arguments(
    "unpatch",
    "type position_bytes count position original weight",
)
"""`PatchArguments` and `UnpatchArguments` of csrc/kernels.h."""

INDEX_DTYPES = frozenset({torch.uint16, torch.int32, torch.int64})
NOT_PLAIN = 3
"""What the compiled function returns for entries that do not ascend, or are outside the weight."""


@dataclass(frozen=True)
class Patch:
    """What a patch overwrote.

    Attributes:
        position: `[n]` int32 (int64 for a weight of more than 2^31 elements) flat positions, each once.
        original: `[n]` values the weight had there.
    """

    position: Tensor
    original: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes kept to undo the patch."""
        return self.position.nbytes + self.original.nbytes


def patch(weight: Tensor, index: Tensor, value: Tensor) -> Patch:
    """Add a sparse residual to a weight in place.

    Semantics: `weight[n, index[n, j]] += value[n, j]`, added in fp32 and rounded once to the weight's dtype; entries
    of one place add up; entries of value 0 (padding) touch nothing.

    Args:
        weight: `[N, K]`, contiguous; changed.
        index: `[N, k]` integer column numbers.
        value: `[N, k]` floating.

    Returns:
        What `unpatch` needs to restore the weight.

    Raises:
        ValueError: shapes, dtypes or column numbers do not fit. The weight is unchanged then.
    """
    _check_shapes(weight, index, value)
    kernels = elementwise(weight)
    made = None if kernels is None else _patch_compiled(kernels, weight, index, value)
    return _patch_torch(weight, index, value) if made is None else made


def unpatch(weight: Tensor, made: Patch) -> None:
    """Restore bit-exactly what `patch` overwrote; patches of one weight are undone last made first.

    Raises:
        ValueError: the weight is not the one (dtype, size, contiguous) that the patch was made on.
    """
    if weight.dtype != made.original.dtype or not weight.is_contiguous():
        raise ValueError(f"the patch was made on a contiguous {made.original.dtype} weight, not {weight.dtype}")
    if len(made.position) and int(made.position[-1]) >= weight.numel():
        raise ValueError(f"the patch was made on a larger weight than {list(weight.shape)}")
    kernels = elementwise(weight)
    if kernels is None:
        weight.view(-1)[made.position.to(torch.int64)] = made.original
        return
    kernels.call(
        UNPATCH_ARGUMENTS,
        type=TYPES[weight.dtype],
        position_bytes=made.position.itemsize,
        count=len(made.position),
        position=made.position.data_ptr(),
        original=made.original.data_ptr(),
        weight=weight.data_ptr(),
    )


def _patch_compiled(kernels: Library, weight: Tensor, index: Tensor, value: Tensor) -> Patch | None:
    """None if entries of a row do not ascend or are outside the weight; then nothing was changed."""
    index = (index if index.dtype in INDEX_DTYPES else index.to(torch.int64)).contiguous()
    value = (value if value.dtype in {torch.bfloat16, torch.float32} else value.to(torch.float32)).contiguous()
    rows, columns = weight.shape
    starts = torch.empty(rows + 1, dtype=torch.int64)
    position = torch.empty(index.numel(), dtype=_position_dtype(weight))
    original = torch.empty(index.numel(), dtype=weight.dtype)
    failed = kernels.call(
        PATCH_ARGUMENTS,
        type=TYPES[weight.dtype],
        value_type=TYPES[value.dtype],
        index_bytes=index.itemsize,
        position_bytes=position.itemsize,
        rows=rows,
        columns=columns,
        entries=index.shape[1],
        index=index.data_ptr(),
        value=value.data_ptr(),
        weight=weight.data_ptr(),
        starts=starts.data_ptr(),
        position=position.data_ptr(),
        original=original.data_ptr(),
    )
    if failed == NOT_PLAIN:
        return None
    count = int(starts[-1])
    made = Patch(position[:count], original[:count])
    if count < len(position):
        with suppress(MemoryError, RuntimeError):  # the weight has changed already: what was there must not be lost
            made = Patch(made.position.clone(), made.original.clone())
    return made


def _patch_torch(weight: Tensor, index: Tensor, value: Tensor) -> Patch:
    _check_columns(weight, index)
    rows, columns = weight.shape
    kept = value.reshape(-1).nonzero().squeeze(1)
    position = index.to(torch.int64) + torch.arange(rows, device=index.device)[:, None] * columns
    position = position.reshape(-1)[kept]
    addend = value.reshape(-1)[kept].to(torch.float32)
    if not bool((position[1:] > position[:-1]).all()):
        position, where = torch.unique(position, return_inverse=True)
        addend = torch.zeros(len(position), device=addend.device).index_add_(0, where, addend)
    flat = weight.view(-1)
    original = flat[position]
    made = Patch(position.to(_position_dtype(weight)), original)
    flat[position] = (original.to(torch.float32) + addend).to(weight.dtype)
    return made


def _position_dtype(weight: Tensor) -> torch.dtype:
    return torch.int32 if weight.numel() <= torch.iinfo(torch.int32).max else torch.int64


def _check_shapes(weight: Tensor, index: Tensor, value: Tensor) -> None:
    if weight.dim() != 2 or not weight.is_contiguous() or not weight.dtype.is_floating_point:
        raise ValueError(f"patch needs a contiguous floating weight [N, K], not {weight.dtype} {list(weight.shape)}")
    if index.dim() != 2 or index.shape[0] != weight.shape[0] or index.shape != value.shape:
        raise ValueError(
            f"index and value must both be [{weight.shape[0]}, k], not {list(index.shape)} and {list(value.shape)}"
        )
    if index.dtype.is_floating_point or not value.dtype.is_floating_point:
        raise ValueError(f"index must be integers and value floating, not {index.dtype} and {value.dtype}")


def _check_columns(weight: Tensor, index: Tensor) -> None:
    if index.numel():
        low, high = torch.aminmax(index.to(torch.int64))
        if int(low) < 0 or int(high) >= weight.shape[1]:
            raise ValueError(f"column numbers {int(low)} to {int(high)} are outside 0 to {weight.shape[1] - 1}")
