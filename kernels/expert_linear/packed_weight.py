"""A weight in 8 or 4 bits, in the layout of the compiled kernels."""

from __future__ import annotations

from ctypes import addressof
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import on_gpu
from kernels.compiled import TYPES, Arguments, QuantisedView, library
from kernels.expert_linear.bank import ROW_BLOCK

GROUP = 32
"""Columns that share a scale in 4 bits; rows are padded to a multiple of it in both."""

ARGUMENTS = Arguments(
    "unpack",
    "type rows columns quantised out",
)
"""`UnpackArguments` of csrc/kernels.h."""

_SCALE_BYTES = 2


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight `[N, K]` in few bits, rows in blocks of 16 with neighbouring columns side by side.

    Semantics: `W[n, k] = scale[n, k // group] * value[n, k]`, a whole row being the group in 8 bits

    Attributes:
        data: uint8. 8 bits: `[blocks, K' / 4, 16, 4]`, four columns of 16 rows, plus 128. 4 bits: `[blocks,
            K' / 32, 288]`, for each group four times eight columns of 16 rows `[16, 4]`, plus 8, the first four columns
            in the lower halves of the bytes and the others in the upper ones, and then the 16 scales in bf16. K' is K
            rounded up to 32.
        scale: `[blocks * 16]` fp32, 8 bits only.
        bits: 8 or 4.
        out_features: N.
        in_features: K.
    """

    data: Tensor
    scale: Tensor | None
    bits: int
    out_features: int
    in_features: int

    @classmethod
    def allocate(cls, out_features: int, in_features: int, bits: int) -> PackedWeight:
        """Make room for a weight; its values are undefined.

        Raises:
            ValueError: bits other than 8 and 4.
        """
        blocks, groups = -(-out_features // ROW_BLOCK), -(-in_features // GROUP)
        if bits == 8:
            data = torch.empty(blocks, groups * GROUP // 4, ROW_BLOCK, 4, dtype=torch.uint8)
            return cls(data, torch.empty(blocks * ROW_BLOCK), bits, out_features, in_features)
        if bits == 4:
            size = ROW_BLOCK * (GROUP // 2 + _SCALE_BYTES)
            return cls(torch.empty(blocks, groups, size, dtype=torch.uint8), None, bits, out_features, in_features)
        raise ValueError(f"a packed weight has 8 or 4 bits, not {bits}")

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return self.out_features, self.in_features

    @property
    def device(self) -> torch.device:
        """Where the integers are."""
        return self.data.device

    def to(self, device: torch.device | str) -> PackedWeight:
        """The weight on a device, in the same layout."""
        scale = None if self.scale is None else self.scale.to(device)
        return PackedWeight(self.data.to(device), scale, self.bits, self.out_features, self.in_features)

    @property
    def nbytes(self) -> int:
        """Bytes of integers and scales."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    @cached_property
    def view(self) -> QuantisedView:
        """The weight as the compiled kernels read it."""
        return QuantisedView(self.data.data_ptr(), None if self.scale is None else self.scale.data_ptr(), self.bits)

    @cached_property
    def view_address(self) -> int:
        """The address of `view`."""
        return addressof(self.view)

    def fill(self, value: Tensor, scale: Tensor, first: int = 0) -> None:
        """Set some rows.

        Args:
            value: `[R, K]` int8, within ±7 and -8 for 4 bits.
            scale: `[R, 1]` for 8 bits, `[R, ceil(K / 32)]` for 4 bits, exact in bf16 then.
            first: number of the first row, a multiple of 16. R is one, too, unless the last row is among them.

        Raises:
            ValueError: shapes that do not fit; nothing was written then.
        """
        scales = 1 if self.bits == 8 else -(-self.in_features // GROUP)
        count, end = len(value), first + len(value)
        whole = first % ROW_BLOCK == 0 and (count % ROW_BLOCK == 0 or end == self.out_features)
        fits = value.shape == (count, self.in_features) and scale.shape == (count, scales)
        if not fits or not whole or end > self.out_features:
            raise ValueError(
                f"rows {first} to {end} of a packed weight {list(self.shape)} in {self.bits} bits need values "
                f"[{count}, {self.in_features}] and scales [{count}, {scales}] of whole blocks of {ROW_BLOCK} rows, "
                f"not {list(value.shape)} and {list(scale.shape)}"
            )
        rows, columns = -count % ROW_BLOCK, -self.in_features % GROUP
        blocks = -(-count // ROW_BLOCK)
        padded = F.pad(value, (0, columns, 0, rows))
        factors = F.pad(scale, (0, 0, 0, rows))
        data = self.data[first // ROW_BLOCK :][:blocks]
        if self.scale is not None:
            data.copy_((padded.view(torch.uint8) ^ 128).view(blocks, ROW_BLOCK, -1, 4).transpose(1, 2))
            self.scale[first : first + blocks * ROW_BLOCK].copy_(factors.flatten())
            return
        fours = (padded + 8).view(torch.uint8).view(blocks, ROW_BLOCK, -1, 2, 4).permute(3, 0, 2, 1, 4)
        both = fours[0] | fours[1] << 4
        size = ROW_BLOCK * GROUP // 2
        data[:, :, :size] = both.reshape(blocks, -1, size)
        turned = factors.to(torch.bfloat16).view(blocks, ROW_BLOCK, -1).transpose(1, 2).contiguous()
        data[:, :, size:] = turned.view(torch.uint8)

    def rows(self, index: Tensor) -> Tensor:
        """Some rows multiplied out.

        Args:
            index: `[T]` int64.

        Returns:
            `[T, K]` fp32.
        """
        blocks, lanes = index // ROW_BLOCK, index % ROW_BLOCK
        if self.scale is not None:
            integers = self.data[blocks, :, lanes].flatten(1)[:, : self.in_features]
            return (integers.to(torch.float32) - 128) * self.scale[index][:, None]
        size = ROW_BLOCK * GROUP // 2
        held = self.data[blocks]
        both = held[:, :, :size].view(len(index), -1, GROUP // 8, ROW_BLOCK, 4)
        each = torch.arange(len(index), device=index.device)
        both = both[each, :, :, lanes]
        integers = torch.stack((both & 15, both >> 4), dim=3).flatten(2)
        scale = held[:, :, size:].contiguous().view(torch.bfloat16)[each, :, lanes]
        return ((integers.to(torch.float32) - 8) * scale.to(torch.float32)[:, :, None]).flatten(1)[
            :, : self.in_features
        ]

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The whole weight, `[N, K]`: products in fp32, rounded once."""
        if on_gpu.runs_triton(self.data):
            # Triton is optional, and takes a second to import.
            from kernels.expert_linear.unpack_triton import unpacked_triton

            return unpacked_triton(self, dtype)
        kernels = library() if self.device.type == "cpu" else None
        if kernels is None or dtype not in {torch.bfloat16, torch.float32}:
            return self.rows(torch.arange(self.out_features, device=self.device)).to(dtype)
        out = torch.empty(self.shape, dtype=dtype)
        kernels.call(
            ARGUMENTS,
            type=TYPES[dtype],
            rows=self.out_features,
            columns=self.in_features,
            quantised=self.view_address,
            out=out.data_ptr(),
        )
        return out
