"""An expert in the decoder's form: its residuals by the decoder's tensors, in the dtypes of the slots."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.expert_linear import ExpertBank, LowRankBank
from kernels.expert_linear.bank import ROW_BLOCK
from kernels.expert_linear.low_rank import Factors
from merge.bundle import LowRankDelta, SparseDelta
from serve.model.layers import Part


@dataclass(frozen=True)
class PackedRows:
    """An expert's sparse residual of one linear layer, as a slot of the layer's bank holds it.

    Attributes:
        index: [ceil(N / 16), k, 16] column numbers.
        value: the same shape, bfloat16 or int8.
        scale: [ceil(N / 16) * 16] float32, with int8 values only.
    """

    index: Tensor
    value: Tensor
    scale: Tensor | None

    @classmethod
    def empty(cls, bank: ExpertBank) -> "PackedRows":
        """Rows that fill a slot and add nothing."""
        index, value = (torch.zeros(part.shape[1:], dtype=part.dtype) for part in (bank.index, bank.value))
        return cls(index, value, None if bank.scale is None else torch.zeros(bank.scale.shape[1]))

    def put(self, rows: slice, delta: SparseDelta) -> None:
        """Fill some rows; an 8-bit residual is multiplied out if the bank has wider values."""
        self._put(self.index, rows, delta.index)
        if self.scale is None:
            self._put(self.value, rows, delta.numbers)
        elif delta.scale is not None:
            self._put(self.value, rows, delta.value)
            self.scale[rows] = delta.scale.to(torch.float32)

    @staticmethod
    def _put(blocks: Tensor, rows: slice, values: Tensor) -> None:
        """Rows of [n, k] values into blocks of 16 rows, whole blocks at once if the rows begin and end with one."""
        converted, k = values.to(blocks.dtype), values.shape[1]
        # torch cannot index by 16-bit columns.
        bits = torch.int16 if blocks.dtype == torch.uint16 else blocks.dtype
        target, source = blocks.view(bits).permute(0, 2, 1), converted.view(bits)
        if rows.start % ROW_BLOCK == 0 and rows.stop % ROW_BLOCK == 0:
            target[rows.start // ROW_BLOCK : rows.stop // ROW_BLOCK, :, :k] = source.view(-1, ROW_BLOCK, k)
        else:
            number = torch.arange(rows.start, rows.stop)
            target[number // ROW_BLOCK, number % ROW_BLOCK, :k] = source

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.index.nbytes + self.value.nbytes + (0 if self.scale is None else self.scale.nbytes)


@dataclass(frozen=True)
class PackedFactors:
    """An expert's low-rank residual of one linear layer, in the dtype of the layer's bank.

    Attributes:
        parts: a [r, K], b [n, r] and scale [r] of each segment of the layer's rows; None if the expert has none.
    """

    parts: list[Factors | None]

    @classmethod
    def empty(cls, bank: LowRankBank) -> "PackedFactors":
        """Factors that fill a slot and add nothing."""
        return cls([None] * len(bank.segments))

    def put(self, segment: int, delta: LowRankDelta, dtype: torch.dtype) -> None:
        """Fill a segment."""
        self.parts[segment] = (delta.a.to(dtype), delta.b.to(dtype), delta.scale)

    @property
    def finite(self) -> bool:
        """Whether no factor went over the range of the dtype."""
        factors = [factor for part in self.parts if part is not None for factor in part[:2]]
        return all(bool(torch.isfinite(factor).all()) for factor in factors if factor.is_floating_point())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(factor.nbytes for part in self.parts if part is not None for factor in part)


@dataclass(frozen=True)
class PackedExpert:
    """An expert in the decoder's form.

    Attributes:
        sparse: the rows of each linear layer that the expert changes.
        dense: [n] float32 of each norm and bias that the expert changes.
        low_rank: the factors of each linear layer that the expert changes.
    """

    sparse: Mapping[Part, PackedRows]
    dense: Mapping[Part, Tensor]
    low_rank: Mapping[Part, PackedFactors] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return (
            sum(rows.nbytes for rows in self.sparse.values())
            + sum(factors.nbytes for factors in self.low_rank.values())
            + sum(delta.nbytes for delta in self.dense.values())
        )
