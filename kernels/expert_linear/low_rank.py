"""The device-side bank of low-rank residuals for one linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from kernels.compiled import TYPES, LowRankView
from kernels.expert_linear.bank import ROW_BLOCK, VALUE_DTYPES

Factors: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""`a [r, K]`, `b [n, r]` and `scale [r]` of one segment."""


@dataclass(frozen=True)
class LowRankSegment:
    """Consecutive rows of a linear layer with separate factors: one of the checkpoint weights that are stacked by rows.

    Attributes:
        first_row: its first row in the layer.
        rows: how many.
        most_rank: the most rank that its factors have in any slot.
        first_rank: index of its first row of A in a slot of the bank.
        start: index of its first element of B in a slot of the bank.
    """

    first_row: int
    rows: int
    most_rank: int
    first_rank: int
    start: int

    @property
    def first_block(self) -> int:
        """The first block of `ROW_BLOCK` rows that it has a row of."""
        return self.first_row // ROW_BLOCK

    @property
    def blocks(self) -> int:
        """Blocks that it has a row of; the first and the last may have rows of its neighbours, too."""
        return -(-(self.first_row + self.rows) // ROW_BLOCK) - self.first_block


@dataclass(frozen=True, eq=False)
class LowRankBank:
    """Residuals `B diag(scale) A` of up to `slots` experts for one weight `[N, K]`, of another rank in each segment.

    Attributes:
        a: `[slots, R, K]`, R the sum of the segments' largest ranks; bf16, fp16, fp32 or int8.
        b: `[slots, E]`, the same dtype. In a slot, entry `j` of 16 neighbouring rows is contiguous: a segment's part is
            `[blocks, r, 16]` with its rank r in that slot, so that reads are contiguous.
        scale: `[slots, R]` fp32, one number for each direction.
        ranks: `[slots, S]` int32, the ranks of each slot's segments. Nothing beyond them is read.
        segments: the S runs of rows.
        out_features: N.
        in_features: K.
    """

    a: Tensor
    b: Tensor
    scale: Tensor
    ranks: Tensor
    segments: tuple[LowRankSegment, ...]
    out_features: int
    in_features: int

    @classmethod
    def allocate(
        cls,
        slots: int,
        segments: Sequence[tuple[int, int]],
        in_features: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> LowRankBank:
        """Make a bank whose slots are all empty.

        Args:
            slots: experts that fit, at least 1.
            segments: rows and the largest rank of each run of rows, from the layer's first row to its last. A largest
                rank of 0 says that no expert changes these rows.
            in_features: K, columns of the weight.
            dtype: how factors are stored: bf16, fp16, fp32 or int8.
            device: the bank's device.

        Raises:
            ValueError: a size is out of range or the dtype is not one of those.
        """
        for name, size in (("slots", slots), ("segments", len(segments)), ("in_features", in_features)):
            if size < 1:
                raise ValueError(f"a low-rank bank needs {name} of at least 1, not {size}")
        for rows, most_rank in segments:
            if rows < 1 or most_rank < 0:
                raise ValueError(f"a segment needs at least 1 row and a rank of 0 or more, not {rows} and {most_rank}")
        if not any(most_rank for _, most_rank in segments):
            raise ValueError("a low-rank bank needs a segment whose rank is at least 1")
        if dtype not in VALUE_DTYPES:
            raise ValueError(f"a low-rank bank stores {', '.join(map(str, VALUE_DTYPES))}, not {dtype}")
        placed: list[LowRankSegment] = []
        first_row = first_rank = start = 0
        for rows, most_rank in segments:
            placed.append(LowRankSegment(first_row, rows, most_rank, first_rank, start))
            first_row, first_rank = first_row + rows, first_rank + most_rank
            start += placed[-1].blocks * most_rank * ROW_BLOCK
        made = cls(
            a=torch.zeros(slots, first_rank, in_features, dtype=dtype, device=device),
            b=torch.zeros(slots, start, dtype=dtype, device=device),
            scale=torch.zeros(slots, first_rank, dtype=torch.float32, device=device),
            ranks=torch.zeros(slots, len(placed), dtype=torch.int32, device=device),
            segments=tuple(placed),
            out_features=first_row,
            in_features=in_features,
        )
        _ = made.table  # a step that is captured must not bring it from the host
        return made

    @property
    def slots(self) -> int:
        """Experts that fit."""
        return self.a.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self.a.nbytes + self.b.nbytes + self.scale.nbytes + self.ranks.nbytes

    @cached_property
    def table(self) -> Tensor:
        """`[S, 4]` int64 on the bank's device: first row, row after the last, first direction and start in B."""
        rows = [(one.first_row, one.first_row + one.rows, one.first_rank, one.start) for one in self.segments]
        return torch.tensor(rows, dtype=torch.int64, device=self.a.device)

    @cached_property
    def view(self) -> LowRankView:
        """The bank as the compiled kernels read it; for the dtypes they know."""
        parts = (self.a, self.b, self.scale, self.ranks, self.table)
        sizes = (len(self.segments), self.a.shape[1], self.b.shape[1])
        return LowRankView(*(part.data_ptr() for part in parts), *sizes, TYPES[self.a.dtype])

    @cached_property
    def view_address(self) -> int:
        """The address of `view`."""
        return addressof(self.view)

    def load(self, slot: int, parts: Sequence[Factors | None]) -> None:
        """Put one expert's factors into a slot, replacing what was there.

        Args:
            slot: 0 to slots - 1.
            parts: for each segment `a [r, K]`, `b [n, r]` and `scale [r]`, r no more than the segment's largest rank;
                None if the expert does not change its rows. Factors are floating or int8, `scale` is floating.
                An int8 bank takes int8 factors only; a wider one holds their integers exactly, `scale` stays apart.

        Raises:
            ValueError: shapes or dtypes do not fit the bank. Nothing was written then.
        """
        self._check_slot(slot)
        if len(parts) != len(self.segments):
            raise ValueError(f"this bank has {len(self.segments)} segments, not {len(parts)}")
        for segment, part in zip(self.segments, parts, strict=True):
            if part is not None:
                self._check_factors(segment, *part)
        for target, values in self.writes(slot, parts):
            target.copy_(values)

    def writes(self, slot: int, parts: Sequence[Factors | None]) -> list[tuple[Tensor, Tensor]]:
        """The parts of a slot that factors which fit the bank change, each with its values in the bank's dtypes."""
        ranks = [0 if part is None else part[0].shape[0] for part in parts]
        found = [(self.ranks[slot], torch.tensor(ranks, dtype=torch.int32))]
        for segment, part, rank in zip(self.segments, parts, ranks, strict=True):
            if part is not None and rank:
                directions, dtype = slice(segment.first_rank, segment.first_rank + rank), self.a.dtype
                found += [
                    (self.a[slot, directions], part[0].to(device="cpu", dtype=dtype)),
                    (self.scale[slot, directions], part[2].to(device="cpu", dtype=torch.float32)),
                    (self._blocks(slot, segment, rank), self._by_block(segment, part[1])),
                ]
        return found

    def clear(self, slot: int) -> None:
        """Empty a slot: its expert adds nothing."""
        self._check_slot(slot)
        self.ranks[slot].zero_()

    def factors(self, slot: int) -> list[Factors | None]:
        """One slot's `a [r, K]`, `b [n, r]` and `scale [r]` for each segment, None if its rank is 0."""
        self._check_slot(slot)
        found: list[Factors | None] = []
        for segment, rank in zip(self.segments, self.ranks[slot].tolist(), strict=True):
            if not rank:
                found.append(None)
                continue
            directions = slice(segment.first_rank, segment.first_rank + rank)
            rows = self._blocks(slot, segment, rank).permute(0, 2, 1).reshape(-1, rank)
            skipped = segment.first_row - segment.first_block * ROW_BLOCK
            b = rows[skipped : skipped + segment.rows]
            found.append((self.a[slot, directions], b, self.scale[slot, directions]))
        return found

    def _blocks(self, slot: int, segment: LowRankSegment, rank: int) -> Tensor:
        """A segment's part of B in a slot: `[blocks, rank, 16]`."""
        size = segment.blocks * rank * ROW_BLOCK
        return self.b[slot, segment.start : segment.start + size].view(segment.blocks, rank, ROW_BLOCK)

    def _by_block(self, segment: LowRankSegment, b: Tensor) -> Tensor:
        padded = torch.zeros(segment.blocks * ROW_BLOCK, b.shape[1], dtype=self.b.dtype)
        skipped = segment.first_row - segment.first_block * ROW_BLOCK
        padded[skipped : skipped + segment.rows] = b.to(device="cpu", dtype=self.b.dtype)
        return padded.view(-1, ROW_BLOCK, b.shape[1]).permute(0, 2, 1)

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not in this bank of {self.slots} slots")

    def _check_factors(self, segment: LowRankSegment, a: Tensor, b: Tensor, scale: Tensor) -> None:
        if a.dim() != 2 or a.shape[0] > segment.most_rank or a.shape[1] != self.in_features:
            raise ValueError(f"a must be [0 to {segment.most_rank}, {self.in_features}], not {list(a.shape)}")
        if b.shape != (segment.rows, a.shape[0]):
            raise ValueError(f"b must be [{segment.rows}, {a.shape[0]}], not {list(b.shape)}")
        if scale.shape != (a.shape[0],) or not scale.dtype.is_floating_point:
            raise ValueError(f"scale must be floating [{a.shape[0]}], not {scale.dtype} {list(scale.shape)}")
        if a.dtype != b.dtype or not (a.dtype.is_floating_point or a.dtype == torch.int8):
            raise ValueError(f"a and b must be of one floating dtype or int8, not {a.dtype} and {b.dtype}")
        if self.a.dtype == torch.int8 and a.dtype != torch.int8:
            raise ValueError(f"this bank stores int8 factors, not {a.dtype}")
