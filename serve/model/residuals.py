"""The experts' residuals beside a decoder's weights: which fit, and the slots that hold them.

A residual file speaks of the checkpoint's tensors; the decoder has them stacked (q, k, v in one matrix). Packing brings
an expert into the decoder's form once, when it is read, so that putting it into a slot is a plain copy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kernels.expert_linear import ExpertBank
from kernels.patch import patch, unpatch
from merge.bundle import Expert
from serve.model.decoder import Decoder
from serve.model.errors import ModelError
from serve.model.layers import Linear, Part, Placement, RmsNorm


@dataclass(frozen=True)
class PackedExpert:
    """An expert in the decoder's form.

    Attributes:
        sparse: (index [N, k], value [N, k]) of each linear layer that the expert changes.
        dense: [n] float32 of each norm and bias that the expert changes.
    """

    sparse: Mapping[Part, tuple[Tensor, Tensor]]
    dense: Mapping[Part, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        pairs = sum(index.nbytes + value.nbytes for index, value in self.sparse.values())
        return pairs + sum(delta.nbytes for delta in self.dense.values())


@dataclass(frozen=True)
class ResidualShape:
    """What a set of experts needs: entries a row of each 2-D weight, and which 1-D parameters they change."""

    entries: Mapping[str, int]
    dense: frozenset[str]

    @classmethod
    def of(cls, experts: Sequence[Path]) -> "ResidualShape":
        """Read the headers of expert files. A file that cannot be read asks for nothing: loading it will say why."""
        entries: dict[str, int] = {}
        dense: set[str] = set()
        for path in experts:
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118 (not a mapping)
                        name, _, kind = key.rpartition(".")
                        shape = file.get_slice(key).get_shape()
                        if kind == "index" and len(shape) == 2:
                            entries[name] = max(entries.get(name, 0), shape[1])
                        elif kind == "delta":
                            dense.add(name)
            except (SafetensorError, OSError):
                continue
        return cls(entries, frozenset(dense))


class ResidualBanks:
    """Slots for experts beside every weight of a decoder that some expert changes.

    Attributes:
        slots: experts that fit at once.
    """

    def __init__(self, decoder: Decoder, shape: ResidualShape, slots: int) -> None:
        self.slots = slots
        self._placements = decoder.placements
        self._banks: dict[Part, ExpertBank] = {}
        self._deltas: dict[Part, Tensor] = {}
        self._undo: list[Callable[[], object]] = []
        if slots:
            self._allocate_banks(shape.entries)
            self._allocate_deltas(shape.dense)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(bank.nbytes for bank in self._banks.values()) + sum(delta.nbytes for delta in self._deltas.values())

    def pack(self, expert: Expert) -> PackedExpert:
        """Bring an expert into the decoder's form.

        Raises:
            ModelError: a tensor that the model does not have, of another shape, or larger than the slots are; or an
                expert that names no tensor at all.
        """
        if not expert.sparse and not expert.dense:
            raise ModelError(f"expert {expert.name!r} names no tensor of the model: it would change nothing")
        who = f"expert {expert.name!r}"
        sparse: dict[Part, tuple[Tensor, Tensor]] = {}
        for name, residual in expert.sparse.items():
            placement = self._placement(who, name, rows=residual.index.shape[0], dims=2)
            bank = self._banks.get(placement.part)
            most, columns = 0 if bank is None else bank.entries, residual.index.to(torch.int64)
            if bank is None or columns.shape[1] > most:
                raise ModelError(
                    f"{who}: {name} has {columns.shape[1]} entries a row, but the slots were made for {most}, the "
                    "most of any expert in the bundle at start: restart with this expert in the bundle"
                )
            if columns.numel() and int(columns.max()) >= placement.shape[1]:
                raise ModelError(
                    f"{who}: {name} has an entry in column {int(columns.max())}; the weight has {placement.shape[1]}"
                )
            if placement.part not in sparse:
                sparse[placement.part] = _empty_rows(bank)
            index, value = sparse[placement.part]
            index[placement.rows, : columns.shape[1]] = residual.index.to(index.dtype)
            value[placement.rows, : columns.shape[1]] = residual.value
        dense: dict[Part, Tensor] = {}
        for name, delta in expert.dense.items():
            placement = self._placement(who, name, rows=delta.shape[0], dims=1)
            if placement.part not in self._deltas:
                raise ModelError(
                    f"{who}: {name} has a delta, which no expert in the bundle had at start: restart with this expert"
                    " in the bundle"
                )
            if placement.part not in dense:
                dense[placement.part] = torch.zeros(self._deltas[placement.part].shape[1])
            dense[placement.part][placement.rows] = delta
        return PackedExpert(sparse, dense)

    def load(self, slot: int, expert: PackedExpert) -> None:
        """Put an expert into a slot, replacing all of what was there."""
        for part, bank in self._banks.items():
            if part in expert.sparse:
                bank.load(slot, *expert.sparse[part])
            else:
                bank.clear(slot)
        for part, delta in self._deltas.items():
            if part in expert.dense:
                delta[slot].copy_(expert.dense[part])
            else:
                delta[slot].zero_()

    def patch(self, slot: int) -> None:
        """Add a slot's residuals into the weights themselves, until `unpatch`.

        Raises:
            RuntimeError: the weights are patched already.
        """
        if self._undo:
            raise RuntimeError("the weights are patched already: unpatch them first")
        try:
            for part, bank in self._banks.items():
                made = patch(part.tensor, *bank.rows(slot))
                self._undo.append(partial(unpatch, part.tensor, made))
            for part, delta in self._deltas.items():
                self._undo.append(partial(part.tensor.copy_, part.tensor.clone()))
                part.tensor.copy_(part.tensor.to(torch.float32) + delta[slot])
        except BaseException:
            self.unpatch()
            raise

    def unpatch(self) -> None:
        """Restore the weights to the last bit; nothing where they are not patched."""
        while self._undo:
            self._undo.pop()()

    def _placement(self, who: str, name: str, rows: int, dims: int) -> Placement:
        placement = self._placements.get(name)
        if placement is None:
            raise ModelError(f"{who} has a residual for {name!r}, which this model does not have")
        if len(placement.shape) != dims or placement.shape[0] != rows:
            raise ModelError(
                f"{who}: the {dims}-D residual of {name} has {rows} rows; the model's tensor is {list(placement.shape)}"
            )
        return placement

    def _allocate_banks(self, entries: Mapping[str, int]) -> None:
        most: dict[Part, int] = {}
        for name, placement in self._placements.items():
            if name in entries and len(placement.shape) == 2:
                fits = max(1, min(entries[name], placement.shape[1]))
                most[placement.part] = max(most.get(placement.part, 1), fits)
        for part, count in most.items():
            assert isinstance(part.layer, Linear)
            rows, columns = part.layer.weight.shape
            # Values stay as they were written, bfloat16, whatever the dtype of the weights.
            bank = ExpertBank.allocate(self.slots, rows, columns, count, torch.bfloat16, part.layer.weight.device)
            part.layer.bank = self._banks[part] = bank

    def _allocate_deltas(self, names: frozenset[str]) -> None:
        for part in {self._placements[name].part: None for name in sorted(names & self._placements.keys())}:
            if part.tensor.dim() == 1:
                delta = torch.zeros(self.slots, len(part.tensor), dtype=torch.float32, device=part.tensor.device)
                self._deltas[part] = delta
                if isinstance(part.layer, RmsNorm):
                    part.layer.delta = delta
                else:
                    part.layer.bias_delta = delta


def _empty_rows(bank: ExpertBank) -> tuple[Tensor, Tensor]:
    shape = (bank.out_features, bank.entries)
    return torch.zeros(shape, dtype=bank.index.dtype), torch.zeros(shape, dtype=bank.value.dtype)
