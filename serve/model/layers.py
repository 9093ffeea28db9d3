"""The decoder's parts: fused linear layers, norms and the embedding, each with room for the experts' residuals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.attention import HeadNorm
from kernels.expert_linear import ExpertBank, ExpertBatch, LowRankBank, PackedWeight, expert_linear
from kernels.expert_norm import added_rms_norm, expert_bias, expert_rms_norm
from serve.model.lookup import add_low_rank_rows, add_sparse_rows


class Linear:
    """One weight [N, K], which may be several of the checkpoint's weights stacked by rows (q, k, v; gate, up).

    Attributes:
        weight: [N, K], of `dtype` or packed in few bits.
        dtype: of activations.
        bias: [N] or None.
        bank: sparse residuals of the resident experts, or None if no expert has any.
        low_rank: low-rank residuals of the resident experts, or None if no expert has any.
        bias_delta: [slots, N] float32, what the experts add to the bias, or None.
    """

    def __init__(self, rows: int, columns: int, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        self.weight: Tensor | PackedWeight = torch.empty(rows, columns, dtype=dtype, device=device)
        self.dtype = dtype
        self.bias = torch.empty(rows, dtype=dtype, device=device) if bias else None
        self.bank: ExpertBank | None = None
        self.low_rank: LowRankBank | None = None
        self.bias_delta: Tensor | None = None

    def __call__(self, x: Tensor, experts: ExpertBatch | None, out: Tensor | None = None) -> Tensor:
        """[T, K] to [T, N]; `out` is memory that the result may be in."""
        y = expert_linear(x, self.weight, self.bias, self.bank, experts, self.low_rank, out)
        return y if self.bias_delta is None else expert_bias(y, self.bias_delta, experts)


class Embedding(Linear):
    """A linear layer that is also looked up by row; tied models use one for both ends."""

    def lookup(self, tokens: Tensor, experts: ExpertBatch | None) -> Tensor:
        """Rows of the weight plus the residuals' rows, added in float32: tokens [T] to [T, K]."""
        x = self.weight.rows(tokens).to(self.dtype) if isinstance(self.weight, PackedWeight) else self.weight[tokens]
        if experts is None or not experts.has_experts or (self.bank is None and self.low_rank is None):
            return x
        wide = x.to(torch.float32, copy=True)
        if self.bank is not None:
            add_sparse_rows(wide, tokens, self.bank, experts)
        if self.low_rank is not None:
            add_low_rank_rows(wide, tokens, self.low_rank, experts)
        return wide.to(x.dtype)


class RmsNorm:
    """Root-mean-square norm over the last dimension.

    Attributes:
        weight: [H].
        delta: [slots, H] float32, what the experts add to the weight, or None.
    """

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device, offset: float = 0.0) -> None:
        self.weight = torch.empty(size, dtype=dtype, device=device)
        self.delta: Tensor | None = None
        self._eps, self._offset = eps, offset

    def __call__(self, x: Tensor, experts: ExpertBatch | None) -> Tensor:
        """[T, ..., H] to the same shape."""
        return expert_rms_norm(x, self.weight, self._eps, self.delta, experts, self._offset)

    def of_heads(self, experts: ExpertBatch | None) -> HeadNorm:
        """The same as the norm of each head, for the op that rotates it."""
        return HeadNorm(self.weight, self._eps, self.delta, experts, self._offset)

    def added(self, x: Tensor, made: Tensor, factor: float, experts: ExpertBatch | None) -> tuple[Tensor, Tensor]:
        """`x + factor * made` and its norm: all [T, H]."""
        return added_rms_norm(x, made, factor, self.weight, self._eps, self.delta, experts, self._offset)


@dataclass(frozen=True)
class Part:
    """A tensor of the decoder: the weight or the bias of a layer.

    Attributes:
        layer: the layer that holds it.
        kind: "weight" or "bias".
    """

    layer: Linear | RmsNorm
    kind: Literal["weight", "bias"] = "weight"

    @property
    def tensor(self) -> Tensor:
        """The values: [N, K] or [N]."""
        if self.kind == "bias" and isinstance(self.layer, Linear) and self.layer.bias is not None:
            return self.layer.bias
        weight = self.layer.weight
        assert isinstance(weight, Tensor), "a packed weight is not a tensor"
        return weight

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.tensor.nbytes if self.kind == "bias" else self.layer.weight.nbytes


@dataclass(frozen=True)
class Placement:
    """The place of a checkpoint's parameter in the decoder.

    Attributes:
        part: the tensor that holds it, alone or stacked with others.
        rows: its rows there.
        shape: the parameter's own shape.
    """

    part: Part
    rows: slice
    shape: tuple[int, ...]

    @property
    def target(self) -> Tensor:
        """The memory that the parameter is copied to."""
        return self.part.tensor[self.rows]


def place_linear(names: Sequence[str], sizes: Sequence[int], linear: Linear) -> dict[str, Placement]:
    """Placements of the modules `names`, stacked by rows in a linear layer, with `sizes` rows each."""
    placements, first = {}, 0
    for name, size in zip(names, sizes, strict=True):
        rows = slice(first, first + size)
        placements[f"{name}.weight"] = Placement(Part(linear), rows, (size, linear.weight.shape[1]))
        if linear.bias is not None:
            placements[f"{name}.bias"] = Placement(Part(linear, "bias"), rows, (size,))
        first += size
    return placements


def place_norm(name: str, norm: RmsNorm) -> dict[str, Placement]:
    """Placement of a norm's weight."""
    size = len(norm.weight)
    return {f"{name}.weight": Placement(Part(norm), slice(0, size), (size,))}
