"""How an expert's values are stored, and what is left of them then."""

from typing import Literal

import torch
from torch import Tensor

from merge.bundle import SparseDelta, dequantise_rows, index_dtype, quantise_rows

Storage = Literal["bf16", "int8"]


def as_stored(value: Tensor, storage: Storage) -> Tensor:
    """Values [N, k] float32 after a round trip through a file; a second call changes nothing."""
    return dequantise_rows(*quantise_rows(value)) if storage == "int8" else value.to(torch.bfloat16).to(torch.float32)


def to_sparse(index: Tensor, value: Tensor, columns: int, storage: Storage) -> SparseDelta:
    """A weight's residual as a file holds it.

    Args:
        index: [N, k] int64, ascending in each row.
        value: [N, k] float32.
        columns: K of the weight.
        storage: of the values.
    """
    index = index.to(index_dtype(columns))
    if storage == "int8":
        return SparseDelta(index, *quantise_rows(value))
    return SparseDelta(index, value.to(torch.bfloat16))
