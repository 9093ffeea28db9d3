"""Where the launches of a layer's residuals leave their sums: in fp32 until the last one rounds them."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Onto:
    """What one of several launches over the same rows writes.

    Attributes:
        y: `[T, N]` contiguous, written by the last launch.
        sums: `[T, N]` fp32, written by the others; y itself if there is one launch.
        bias: `[N]` or None, added by the last launch.
        first: nothing was written to `sums` before.
        last: this launch writes y.
    """

    y: Tensor
    sums: Tensor
    bias: Tensor | None
    first: bool
    last: bool

    @classmethod
    def of(cls, y: Tensor, sums: Tensor, bias: Tensor | None, number: int, launches: int) -> Onto:
        """What one launch of several writes; `number` counts them."""
        return cls(y, sums, bias, number == 0, number == launches - 1)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """y, the sums and the bias, as kernels take them; what is not read is y."""
        return self.y, self.sums, self.y if self.bias is None else self.bias


@triton.jit  # type: ignore[untyped-decorator]
def finish(  # type: ignore[no-untyped-def]
    total, y, sums, bias, own, kept, row, rows, HAS_BIAS: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr
):
    """Add a launch's sums `[tokens, rows]` to those before it; the last launch adds the bias, and rounds."""
    inside = row < rows
    at = own[:, None] * rows + row[None, :]
    mask = kept[:, None] & inside[None, :]
    if not FIRST:
        total += tl.load(sums + at, mask=mask, other=0.0)
    if LAST:
        if HAS_BIAS:
            total += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[None, :]
        tl.store(y + at, total.to(y.dtype.element_ty), mask=mask)
    else:
        tl.store(sums + at, total, mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def finish_row(  # type: ignore[no-untyped-def]
    total, y, sums, bias, own, row, rows, HAS_BIAS: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr
):
    """`finish` for the sums `[rows]` of one token."""
    inside = row < rows
    at = own * rows + row
    if not FIRST:
        total += tl.load(sums + at, mask=inside, other=0.0)
    if LAST:
        if HAS_BIAS:
            total += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)
    else:
        tl.store(sums + at, total, mask=inside)
