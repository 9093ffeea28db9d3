"""The residual of one parameter, and the rules that it keeps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from merge.bundle.errors import BundleError
from merge.bundle.quantise import dequantise_rows

INDEX_DTYPES = (torch.uint16, torch.int32)


@dataclass(frozen=True)
class SparseDelta:
    """Residual of one 2-D weight, k entries in every row.

    Attributes:
        index: [N, k] uint16 or int32, column numbers, ascending within a row.
        value: [N, k] bfloat16, or int8 together with `scale`: what is added there.
        scale: [N] bfloat16, what a row's int8 values are multiplied by; None for bfloat16 values.
    """

    index: Tensor
    value: Tensor
    scale: Tensor | None = None

    @property
    def nnz(self) -> int:
        """Entries that are not zero."""
        return int(torch.count_nonzero(self.value))

    @property
    def numbers(self) -> Tensor:
        """What is added, [N, k] float32."""
        return self.value.to(torch.float32) if self.scale is None else dequantise_rows(self.value, self.scale)

    def dense(self, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The residual as a dense [N, columns] matrix."""
        out = torch.zeros(self.index.shape[0], columns, dtype=dtype)
        return out.scatter_add_(1, self.index.to(torch.int64), self.numbers.to(dtype))


def index_dtype(columns: int) -> torch.dtype:
    """The dtype of the column numbers of a weight with this number of columns."""
    return torch.uint16 if columns <= 1 << 16 else torch.int32


def check_sparse(name: str, delta: SparseDelta) -> None:
    """Check a residual of a 2-D weight.

    Raises:
        BundleError: shapes, dtypes, columns or values break the rules above.
    """
    index, value = delta.index, delta.value
    if index.ndim != 2 or index.shape != value.shape:
        raise BundleError(
            f"{name}.index is {list(index.shape)} and .value {list(value.shape)}; both must be the same [N, k]"
        )
    if not index.numel():
        raise BundleError(f"{name} is {list(index.shape)}: a residual has at least one row of one entry")
    if index.dtype not in INDEX_DTYPES or value.dtype != (torch.bfloat16 if delta.scale is None else torch.int8):
        raise BundleError(
            f"{name} has dtypes {index.dtype} and {value.dtype}; they must be uint16 or int32, and bfloat16 (or int8 "
            "with a scale)"
        )
    if delta.scale is None and not bool(torch.isfinite(value).all()):
        raise BundleError(f"{name}.value holds NaN or infinity")
    if delta.scale is not None:
        check_scale(name, delta.scale, len(value))
    step = index.to(torch.int64).diff(dim=1)
    repeats_a_column = (step == 0) & (value[:, 1:] != 0)
    if bool((step < 0).any()) or bool(repeats_a_column.any()):
        raise BundleError(f"the columns in {name}.index do not ascend within each row")
    if index.dtype == torch.int32 and bool((index < 0).any()):
        raise BundleError(f"{name}.index holds a negative column")


def check_scale(name: str, scale: Tensor, rows: int | None = None) -> None:
    """Check the scale of int8 values.

    Raises:
        BundleError: it is not a bfloat16 vector with a finite, positive number for each row.
    """
    if scale.ndim != 1 or scale.dtype != torch.bfloat16 or (rows is not None and len(scale) != rows):
        want = "1-D" if rows is None else f"[{rows}]"
        raise BundleError(f"{name}.scale is {scale.dtype} {list(scale.shape)}; it must be bfloat16 and {want}")
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise BundleError(f"{name}.scale holds a number that is not finite and positive")


def check_dense(name: str, delta: Tensor) -> None:
    """Check the delta of a 1-D parameter.

    Raises:
        BundleError: it is not a finite float32 vector.
    """
    if delta.ndim != 1 or delta.dtype != torch.float32:
        raise BundleError(f"{name}.delta is {delta.dtype} {list(delta.shape)}; it must be float32 and 1-D")
    if not bool(torch.isfinite(delta).all()):
        raise BundleError(f"{name}.delta holds NaN or infinity")
