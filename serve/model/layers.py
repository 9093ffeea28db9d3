"""The decoder's parts: fused linear layers, norms and the embedding, each with room for the experts' residuals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.expert_linear import ExpertBank, ExpertBatch, expert_linear
from kernels.expert_norm import expert_bias, expert_rms_norm


class Linear:
    """One weight [N, K], which may be several of the checkpoint's weights stacked by rows (q, k, v; gate, up).

    Attributes:
        weight: [N, K].
        bias: [N] or None.
        bank: residuals of the resident experts, or None where no expert has any.
        bias_delta: [slots, N] float32, what the experts add to the bias, or None.
    """

    def __init__(self, rows: int, columns: int, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(rows, columns, dtype=dtype, device=device)
        self.bias = torch.empty(rows, dtype=dtype, device=device) if bias else None
        self.bank: ExpertBank | None = None
        self.bias_delta: Tensor | None = None

    def __call__(self, x: Tensor, experts: ExpertBatch | None) -> Tensor:
        """[T, K] to [T, N]."""
        y = expert_linear(x, self.weight, self.bias, self.bank, experts)
        return y if self.bias_delta is None else expert_bias(y, self.bias_delta, experts)


class Embedding(Linear):
    """A linear layer that is also looked up by row; tied models use one for both ends."""

    def lookup(self, tokens: Tensor, experts: ExpertBatch | None) -> Tensor:
        """Rows of the weight plus the residuals' rows, added in float32: tokens [T] to [T, K]."""
        x = self.weight[tokens]
        if self.bank is None or experts is None or not experts.has_experts:
            return x
        wide = x.to(torch.float32)
        rows, lanes = tokens // self.bank.index.shape[3], tokens % self.bank.index.shape[3]
        for column in range(experts.slots.shape[1]):
            slots = experts.slots[:, column].to(torch.int64)
            gates = experts.gates[:, column] * (slots >= 0)
            place = (slots.clamp(min=0), rows, slice(None), lanes)
            values = self.bank.value[place].to(torch.float32) * gates[:, None]
            if self.bank.scale is not None:
                values *= self.bank.scale[slots.clamp(min=0), tokens][:, None]
            wide.scatter_add_(1, columns_at(self.bank.index, place, signed=x.device.type != "cpu"), values)
        return wide.to(x.dtype)


def columns_at(index: Tensor, place: tuple[Tensor | slice, ...], signed: bool) -> Tensor:
    """Some of a bank's column numbers, as int64.

    Args:
        index: the bank's.
        place: indices into it.
        signed: read numbers of 16 bits as signed ones first, for torch does not index unsigned ones on a GPU.
    """
    if signed and index.dtype == torch.uint16:
        return index.view(torch.int16)[place].to(torch.int64) & 0xFFFF
    return index[place].to(torch.int64)


class RmsNorm:
    """Root-mean-square norm over the last dimension.

    Attributes:
        weight: [H].
        delta: [slots, H] float32, what the experts add to the weight, or None.
    """

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(size, dtype=dtype, device=device)
        self.delta: Tensor | None = None
        self._eps = eps

    def __call__(self, x: Tensor, experts: ExpertBatch | None) -> Tensor:
        """[T, ..., H] to the same shape."""
        return expert_rms_norm(x, self.weight, self._eps, self.delta, experts)


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
        return self.layer.weight


@dataclass(frozen=True)
class Placement:
    """Where a parameter of the checkpoint lies in the decoder.

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
