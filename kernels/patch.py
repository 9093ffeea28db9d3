"""Put one expert's residual into a weight in place, and take it out again to the last bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    _check(weight, index, value)
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
    flat[position] = (original.to(torch.float32) + addend).to(weight.dtype)
    small = weight.numel() <= torch.iinfo(torch.int32).max
    return Patch(position.to(torch.int32) if small else position, original)


def unpatch(weight: Tensor, made: Patch) -> None:
    """Restore bit-exactly what `patch` overwrote; patches of one weight are undone last made first.

    Raises:
        ValueError: the weight is not the one (dtype, size, contiguous) that the patch was made on.
    """
    if weight.dtype != made.original.dtype or not weight.is_contiguous():
        raise ValueError(f"the patch was made on a contiguous {made.original.dtype} weight, not {weight.dtype}")
    if len(made.position) and int(made.position[-1]) >= weight.numel():
        raise ValueError(f"the patch was made on a larger weight than {list(weight.shape)}")
    weight.view(-1)[made.position.to(torch.int64)] = made.original


def _check(weight: Tensor, index: Tensor, value: Tensor) -> None:
    if weight.dim() != 2 or not weight.is_contiguous() or not weight.dtype.is_floating_point:
        raise ValueError(f"patch needs a contiguous floating weight [N, K], not {weight.dtype} {list(weight.shape)}")
    if index.dim() != 2 or index.shape[0] != weight.shape[0] or index.shape != value.shape:
        raise ValueError(
            f"index and value must both be [{weight.shape[0]}, k], not {list(index.shape)} and {list(value.shape)}"
        )
    if index.dtype.is_floating_point or not value.dtype.is_floating_point:
        raise ValueError(f"index must be integers and value floating, not {index.dtype} and {value.dtype}")
    if index.numel():
        low, high = torch.aminmax(index.to(torch.int64))
        if int(low) < 0 or int(high) >= weight.shape[1]:
            raise ValueError(f"column numbers {int(low)} to {int(high)} are outside 0 to {weight.shape[1] - 1}")
