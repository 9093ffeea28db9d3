"""The device-side bank of sparse residuals for one linear layer."""

from __future__ import annotations

from ctypes import addressof
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kernels.compiled import TYPES, BankView

ROW_BLOCK = 16
"""Rows that are stored together. Entry `j` of 16 neighbouring rows is contiguous, so a vector register (or a GPU
warp) holds 16 rows and adds the entries of each one after another: no padding of short rows, no sums across lanes,
and the same order of additions wherever it runs."""

UINT16_COLUMNS = 1 << 16
VALUE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int8)


@dataclass(frozen=True, eq=False)
class ExpertBank:
    """Residuals of up to `slots` experts for one weight `[N, K]`, `k` entries in every row.

    Attributes:
        index: column numbers `[slots, ceil(N / 16), k, 16]`, uint16, or int32 if K > 65,536.
        value: their values, the same shape, bf16, fp16, fp32 or int8. An entry of value 0 adds nothing.
        scale: `[slots, ceil(N / 16) * 16]` fp32, what a row's int8 values are multiplied by; None for other dtypes.
        out_features: N.
        in_features: K.
    """

    index: Tensor
    value: Tensor
    scale: Tensor | None
    out_features: int
    in_features: int

    @classmethod
    def allocate(
        cls,
        slots: int,
        out_features: int,
        in_features: int,
        entries: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> ExpertBank:
        """Make a bank whose slots are all empty.

        Args:
            slots: experts that fit, at least 1.
            out_features: N, rows of the weight.
            in_features: K, columns of the weight.
            entries: the most entries a row of any expert has, 1 to K.
            dtype: how values are stored: bf16, fp16, fp32 or int8 (with a scale for each row).
            device: the bank's device.

        Raises:
            ValueError: a size is out of range or the dtype is not one of those.
        """
        for name, size in (("slots", slots), ("out_features", out_features), ("in_features", in_features)):
            if size < 1:
                raise ValueError(f"an expert bank needs {name} of at least 1, not {size}")
        if not 1 <= entries <= in_features:
            raise ValueError(f"an expert bank needs 1 to {in_features} entries a row, not {entries}")
        if dtype not in VALUE_DTYPES:
            raise ValueError(f"an expert bank stores {', '.join(map(str, VALUE_DTYPES))}, not {dtype}")
        blocks = -(-out_features // ROW_BLOCK)
        shape = (slots, blocks, entries, ROW_BLOCK)
        index_dtype = torch.uint16 if in_features <= UINT16_COLUMNS else torch.int32
        scale = None
        if dtype == torch.int8:
            scale = torch.zeros(slots, blocks * ROW_BLOCK, dtype=torch.float32, device=device)
        return cls(
            index=torch.zeros(shape, dtype=index_dtype, device=device),
            value=torch.zeros(shape, dtype=dtype, device=device),
            scale=scale,
            out_features=out_features,
            in_features=in_features,
        )

    @property
    def slots(self) -> int:
        """Experts that fit."""
        return self.index.shape[0]

    @property
    def entries(self) -> int:
        """Entries stored for every row."""
        return self.index.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self.index.nbytes + self.value.nbytes + (0 if self.scale is None else self.scale.nbytes)

    @cached_property
    def view(self) -> BankView:
        """The bank as the compiled kernels read it; for the dtypes they know."""
        scale = None if self.scale is None else self.scale.data_ptr()
        blocks, value_type = self.index.shape[1], TYPES[self.value.dtype]
        return BankView(self.index.data_ptr(), self.value.data_ptr(), scale, blocks, self.entries, value_type)

    @cached_property
    def view_address(self) -> int:
        """The address of `view`."""
        return addressof(self.view)

    def load(self, slot: int, index: Tensor, value: Tensor, scale: Tensor | None = None) -> None:
        """Put one expert's rows into a slot, replacing what was there.

        Args:
            slot: 0 to slots - 1.
            index: `[N, k']` integer column numbers, k' <= entries; missing entries are padded.
            value: `[N, k']` floating, rounded to the bank's dtype; or int8 together with `scale`.
            scale: `[N]` floating, with int8 values only: the residual is `scale[n] * value[n, j]`.

        Raises:
            ValueError: shapes, dtypes or column numbers do not fit the bank. Nothing was written then.
        """
        self._check_slot(slot)
        self._check_rows(index, value, scale)
        if scale is not None and self.scale is None:
            value = value.to(torch.float32) * scale.to(torch.float32)[:, None]
        self._write(self.index[slot], index)
        self._write(self.value[slot], value)
        if self.scale is not None and scale is not None:
            self.scale[slot].zero_()
            self.scale[slot, : self.out_features].copy_(scale)

    def clear(self, slot: int) -> None:
        """Empty a slot: its expert adds nothing."""
        self._check_slot(slot)
        self.index[slot].zero_()
        self.value[slot].zero_()
        if self.scale is not None:
            self.scale[slot].zero_()

    def rows(self, slot: int) -> tuple[Tensor, Tensor]:
        """One slot's entries by row: `index [N, k]` int64 and `value [N, k]` (fp32 if the bank stores int8)."""
        self._check_slot(slot)
        index = self._by_row(self.index[slot].to(torch.int64))
        value = self._by_row(self.value[slot])
        if self.scale is not None:
            value = value.to(torch.float32) * self.scale[slot, : self.out_features, None]
        return index, value

    def _by_row(self, blocks: Tensor) -> Tensor:
        return blocks.permute(0, 2, 1).reshape(-1, self.entries)[: self.out_features]

    def _write(self, blocks: Tensor, rows: Tensor) -> None:
        padded = torch.zeros(blocks.shape[0] * ROW_BLOCK, self.entries, dtype=blocks.dtype)
        padded[: self.out_features, : rows.shape[1]] = rows.to(device="cpu", dtype=blocks.dtype)
        blocks.copy_(padded.view(-1, ROW_BLOCK, self.entries).permute(0, 2, 1).contiguous())

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not in this bank of {self.slots} slots")

    def _check_rows(self, index: Tensor, value: Tensor, scale: Tensor | None) -> None:
        if index.dim() != 2 or index.shape[0] != self.out_features or not 1 <= index.shape[1] <= self.entries:
            want = f"[{self.out_features}, 1 to {self.entries}]"
            raise ValueError(f"an expert's index must be {want}, not {list(index.shape)}")
        if value.shape != index.shape:
            raise ValueError(f"value is {list(value.shape)} but index is {list(index.shape)}")
        if index.dtype.is_floating_point or index.dtype.is_complex or index.dtype == torch.bool:
            raise ValueError(f"an expert's index must be an integer tensor, not {index.dtype}")
        if value.dtype == torch.int8:
            if scale is None:
                raise ValueError("int8 values need a scale for each row")
            if scale.shape != (self.out_features,) or not scale.dtype.is_floating_point:
                raise ValueError(f"scale must be floating [{self.out_features}], not {scale.dtype} {list(scale.shape)}")
        elif not value.dtype.is_floating_point:
            raise ValueError(f"an expert's value must be floating or int8, not {value.dtype}")
        elif scale is not None:
            raise ValueError(f"scale is only valid with int8 values, not {value.dtype}")
        elif self.scale is not None:
            raise ValueError(f"this bank stores int8 values with a scale, not {value.dtype}")
        low, high = torch.aminmax(index.to(torch.int64))
        if int(low) < 0 or int(high) >= self.in_features:
            raise ValueError(f"column numbers {int(low)} to {int(high)} are outside 0 to {self.in_features - 1}")
