"""The experts' residuals beside a decoder's weights: which fit, and the slots that hold them.

A residual file speaks of the checkpoint's tensors; the decoder has them stacked (q, k, v in one matrix). Packing brings
an expert into the decoder's form once, when it is read, so that putting it into a slot is a plain copy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kernels.expert_linear import ExpertBank
from kernels.patch import patch, unpatch
from merge.bundle import BundleError, Expert, SparseDelta, read_layout
from serve.model.decoder import Decoder
from serve.model.errors import ModelError
from serve.model.layers import Linear, Part, Placement, RmsNorm


@dataclass(frozen=True)
class PackedRows:
    """An expert's residual of one linear layer, in the dtypes of the layer's bank.

    Attributes:
        index: [N, k] column numbers.
        value: [N, k] bfloat16 or int8.
        scale: [N] float32, with int8 values only.
    """

    index: Tensor
    value: Tensor
    scale: Tensor | None

    @classmethod
    def empty(cls, bank: ExpertBank) -> "PackedRows":
        """Rows that fill a slot and add nothing."""
        shape = (bank.out_features, bank.entries)
        scale = None if bank.scale is None else torch.zeros(shape[0])
        return cls(torch.zeros(shape, dtype=bank.index.dtype), torch.zeros(shape, dtype=bank.value.dtype), scale)

    def put(self, rows: slice, delta: SparseDelta) -> None:
        """Fill some rows; an 8-bit residual is multiplied out where the bank has wider values."""
        k = delta.index.shape[1]
        self.index[rows, :k] = delta.index.to(self.index.dtype)
        if self.scale is None:
            self.value[rows, :k] = delta.numbers.to(self.value.dtype)
        elif delta.scale is not None:
            self.value[rows, :k], self.scale[rows] = delta.value, delta.scale.to(torch.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.index.nbytes + self.value.nbytes + (0 if self.scale is None else self.scale.nbytes)


@dataclass(frozen=True)
class PackedExpert:
    """An expert in the decoder's form.

    Attributes:
        sparse: the rows of each linear layer that the expert changes.
        dense: [n] float32 of each norm and bias that the expert changes.
    """

    sparse: Mapping[Part, PackedRows]
    dense: Mapping[Part, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(rows.nbytes for rows in self.sparse.values()) + sum(delta.nbytes for delta in self.dense.values())


@dataclass(frozen=True)
class ResidualShape:
    """What a set of experts needs.

    Attributes:
        entries: the most entries a row of each 2-D weight.
        dense: the 1-D parameters that they change.
        quantised: the 2-D weights of which every expert's residual has 8-bit values.
    """

    entries: Mapping[str, int]
    dense: frozenset[str]
    quantised: frozenset[str] = frozenset()

    @classmethod
    def of(cls, experts: Sequence[Path]) -> "ResidualShape":
        """Read the headers of expert files. A file that cannot be read asks for nothing: loading it will say why."""
        return cls.of_readable(experts)[0]

    @classmethod
    def of_readable(cls, experts: Sequence[Path]) -> tuple["ResidualShape", list[BundleError]]:
        """As `of`, and why files could not be read."""
        entries: dict[str, int] = {}
        dense: set[str] = set()
        wide: set[str] = set()
        errors: list[BundleError] = []
        for path in experts:
            try:
                layout = read_layout(path)
            except BundleError as error:
                errors.append(error)
                continue
            for name, count in layout.entries.items():
                entries[name] = max(entries.get(name, 0), count)
            dense |= layout.dense
            wide |= layout.entries.keys() - layout.quantised
        return cls(entries, frozenset(dense), frozenset(entries.keys() - wide)), errors


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
            self._allocate_banks(shape)
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
        sparse: dict[Part, PackedRows] = {}
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
            if bank.scale is not None and residual.scale is None:
                raise ModelError(
                    f"{who}: {name} has {residual.value.dtype} values, but every expert in the bundle at start had "
                    "8-bit ones and so have the slots: restart with this expert in the bundle"
                )
            if placement.part not in sparse:
                sparse[placement.part] = PackedRows.empty(bank)
            sparse[placement.part].put(placement.rows, residual)
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
                rows = expert.sparse[part]
                bank.load(slot, rows.index, rows.value, rows.scale)
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
        """Restore the weights to the last bit; nothing where they are not patched.

        Where that fails, what is not restored yet is so by the next call.
        """
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def _placement(self, who: str, name: str, rows: int, dims: int) -> Placement:
        placement = self._placements.get(name)
        if placement is None:
            raise ModelError(f"{who} has a residual for {name!r}, which this model does not have")
        if len(placement.shape) != dims or placement.shape[0] != rows:
            raise ModelError(
                f"{who}: the {dims}-D residual of {name} has {rows} rows; the model's tensor is {list(placement.shape)}"
            )
        return placement

    def _allocate_banks(self, shape: ResidualShape) -> None:
        most: dict[Part, int] = {}
        wide: set[Part] = set()
        for name, placement in self._placements.items():
            if name in shape.entries and len(placement.shape) == 2:
                fits = max(1, min(shape.entries[name], placement.shape[1]))
                most[placement.part] = max(most.get(placement.part, 1), fits)
                if name not in shape.quantised:
                    wide.add(placement.part)
        for part, count in most.items():
            assert isinstance(part.layer, Linear)
            rows, columns = part.layer.weight.shape
            # Values stay as they were written, whatever the dtype of the weights.
            dtype = torch.bfloat16 if part in wide else torch.int8
            bank = ExpertBank.allocate(self.slots, rows, columns, count, dtype, part.layer.weight.device)
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
