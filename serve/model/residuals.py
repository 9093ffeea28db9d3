"""The experts' residuals beside a decoder's weights: what fits, and the slots that hold them.

A residual file names the checkpoint's tensors; the decoder has them stacked (q, k, v in one matrix). Packing brings
an expert into the decoder's form once, when it is read, so that putting it into a slot is a plain copy.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from kernels.expert_linear import ExpertBank, LowRankBank, PackedWeight
from kernels.patch import patch, unpatch
from merge.bundle import Expert, LowRankDelta, SparseDelta
from serve.model.decoder import Decoder
from serve.model.errors import ModelError
from serve.model.layers import Linear, Part, Placement, RmsNorm
from serve.model.packed import PackedExpert, PackedFactors, PackedRows
from serve.model.residual_shape import ResidualShape
from serve.model.slot_writer import SlotWriter, Write

LAYERS = "model.layers."
"""What the names of weights begin with that `--enable-lora` makes room for."""


class ResidualBanks:
    """Slots for experts beside every weight of a decoder that some expert changes.

    Attributes:
        slots: experts that fit at once.
    """

    def __init__(self, decoder: Decoder, shape: ResidualShape, slots: int) -> None:
        self.slots = slots
        self._placements = decoder.placements
        self._banks: dict[Part, ExpertBank] = {}
        self._low_rank: dict[Part, LowRankBank] = {}
        self._with_low_rank: set[int] = set()
        self._packed = any(isinstance(one.part.layer.weight, PackedWeight) for one in self._placements.values())
        self._deltas: dict[Part, Tensor] = {}
        self._undo: list[Callable[[], object]] = []
        self._writer = SlotWriter(decoder.device)
        if slots:
            self._allocate_banks(shape)
            self._allocate_low_rank(shape)
            self._allocate_deltas(shape.dense)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return (
            sum(bank.nbytes for bank in self._banks.values())
            + sum(bank.nbytes for bank in self._low_rank.values())
            + sum(delta.nbytes for delta in self._deltas.values())
        )

    def pack(self, expert: Expert) -> PackedExpert:
        """Bring an expert into the decoder's form.

        Raises:
            ModelError: a tensor that the model does not have, of another shape, or larger than the slots are; or an
                expert that names no tensor at all.
        """
        if not expert.sparse and not expert.low_rank and not expert.dense:
            raise ModelError(f"expert {expert.name!r} names no tensor of the model: it would change nothing")
        who = f"expert {expert.name!r}"
        return PackedExpert(
            self._pack_sparse(who, expert.sparse),
            self._pack_dense(who, expert.dense),
            self._pack_low_rank(who, expert.low_rank),
        )

    def _pack_sparse(self, who: str, residuals: Mapping[str, SparseDelta]) -> dict[Part, PackedRows]:
        sparse: dict[Part, PackedRows] = {}
        for name, residual in residuals.items():
            placement = self._placement(who, name, rows=residual.index.shape[0], dims=2)
            bank = self._banks.get(placement.part)
            most, columns = 0 if bank is None else bank.entries, residual.index.to(torch.int64)
            if bank is None or columns.shape[1] > most:
                raise ModelError(
                    f"{who}: {name} has {columns.shape[1]} entries a row, but the slots were made for {most}, the "
                    "most of any expert in the bundle at start: restart with this expert in the bundle"
                )
            low, high = (int(bound) for bound in torch.aminmax(columns)) if columns.numel() else (0, 0)
            if low < 0 or high >= placement.shape[1]:
                outside = low if low < 0 else high
                raise ModelError(f"{who}: {name} has an entry in column {outside}; the weight has {placement.shape[1]}")
            if bank.scale is not None and residual.scale is None:
                raise ModelError(
                    f"{who}: {name} has {residual.value.dtype} values, but every expert in the bundle at start had "
                    "8-bit ones and so have the slots: restart with this expert in the bundle"
                )
            if placement.part not in sparse:
                sparse[placement.part] = PackedRows.empty(bank)
            sparse[placement.part].put(placement.rows, residual)
        return sparse

    def _pack_low_rank(self, who: str, residuals: Mapping[str, LowRankDelta]) -> dict[Part, PackedFactors]:
        low_rank: dict[Part, PackedFactors] = {}
        for name, residual in residuals.items():
            placement = self._placement(who, name, rows=residual.shape[0], dims=2)
            if residual.shape[1] != placement.shape[1]:
                raise ModelError(
                    f"{who}: the low-rank part of {name} is for {residual.shape[1]} columns; the model's tensor is "
                    f"{list(placement.shape)}"
                )
            bank = self._low_rank.get(placement.part)
            segment = 0 if bank is None else _segment_at(bank, placement.rows.start)
            most = 0 if bank is None else bank.segments[segment].most_rank
            if bank is None or residual.rank > most:
                room = f", or with --enable-lora --max-lora-rank {residual.rank}" if name.startswith(LAYERS) else ""
                raise ModelError(
                    f"{who}: {name} has rank {residual.rank}, but the slots were made for rank {most}, the largest of "
                    f"any expert in the bundle at start: restart with this expert in the bundle{room}"
                )
            if bank.a.dtype == torch.int8 and not residual.quantised:
                raise ModelError(
                    f"{who}: {name} has {residual.a.dtype} factors, but every expert in the bundle at start had 8-bit "
                    "ones and so have the slots: restart with this expert in the bundle"
                )
            packed = low_rank.setdefault(placement.part, PackedFactors.empty(bank))
            packed.put(segment, residual, bank.a.dtype)
            if not packed.finite:
                raise ModelError(
                    f"{who}: {name} has factors too large for {bank.a.dtype}: serve with --dtype bfloat16 or float32"
                )
        return low_rank

    def _pack_dense(self, who: str, deltas: Mapping[str, Tensor]) -> dict[Part, Tensor]:
        dense: dict[Part, Tensor] = {}
        for name, delta in deltas.items():
            placement = self._placement(who, name, rows=delta.shape[0], dims=1)
            if placement.part not in self._deltas:
                raise ModelError(
                    f"{who}: {name} has a delta, which no expert in the bundle had at start: restart with this expert"
                    " in the bundle"
                )
            if placement.part not in dense:
                dense[placement.part] = torch.zeros(self._deltas[placement.part].shape[1])
            dense[placement.part][placement.rows] = delta
        return dense

    def load(self, slot: int, expert: PackedExpert) -> None:
        """Put an expert into a slot, replacing all of what was there.

        It was checked and brought into the slot's form when it was packed, and is only copied here.
        """
        self._writer.write(list(self._writes(slot, expert)))
        if expert.low_rank:
            self._with_low_rank.add(slot)
        else:
            self._with_low_rank.discard(slot)

    def _writes(self, slot: int, expert: PackedExpert) -> Iterator[Write]:
        """What each part of a slot is to hold. Whatever holds no expert's part adds nothing."""
        for part, bank in self._banks.items():
            rows = expert.sparse.get(part)
            yield Write(bank.index[slot], None if rows is None else rows.index)
            yield Write(bank.value[slot], None if rows is None else rows.value)
            if bank.scale is not None:
                yield Write(bank.scale[slot], None if rows is None else rows.scale)
        for part, factors in self._low_rank.items():
            if part in expert.low_rank:
                yield from (Write(*one) for one in factors.writes(slot, expert.low_rank[part].parts))
            else:
                yield Write(factors.ranks[slot], None)
        for part, delta in self._deltas.items():
            yield Write(delta[slot], expert.dense.get(part))

    def patches(self, slot: int) -> bool:
        """Whether `patch` takes a slot: not if its expert has a low-rank part, whose product is a dense matrix.

        Weights of few bits are not patched: a sum would have to be rounded to them.
        """
        return slot not in self._with_low_rank and not self._packed

    def patch(self, slot: int) -> None:
        """Add a slot's residuals into the weights themselves, until `unpatch`.

        Raises:
            RuntimeError: the weights are patched already, or `patches` does not allow the slot.
        """
        if not self.patches(slot):
            raise RuntimeError(
                f"slot {slot} cannot be patched: its expert must be sparse and the weights must not be quantised"
            )
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
        """Restore the weights to the last bit. Does nothing if they are not patched.

        If it fails, the next call restores the rest.
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

    def _allocate_low_rank(self, shape: ResidualShape) -> None:
        stacked: dict[Part, list[tuple[str, Placement]]] = {}
        for name, placement in self._placements.items():
            if len(placement.shape) == 2:
                stacked.setdefault(placement.part, []).append((name, placement))
        for part, weights in stacked.items():
            # A damaged file's header may say 0, and the file is refused when it is loaded.
            found = [name for name, _ in weights if shape.ranks.get(name, 0) > 0 or name in shape.adapter_ranks]
            if not found:
                continue
            assert isinstance(part.layer, Linear)
            segments = [
                (one.shape[0], max(shape.adapter_ranks.get(name, 0), min(shape.ranks.get(name, 0), *one.shape)))
                for name, one in weights
            ]
            # Factors take the dtype of the weights, as in PEFT and vLLM, unless all of them are integers.
            quantised = (shape.quantised_ranks - shape.adapter_ranks.keys()).issuperset(found)
            dtype = torch.int8 if quantised else part.layer.dtype
            columns, device = part.layer.weight.shape[1], part.layer.weight.device
            bank = LowRankBank.allocate(self.slots, segments, columns, dtype, device)
            part.layer.low_rank = self._low_rank[part] = bank

    def _allocate_deltas(self, names: frozenset[str]) -> None:
        for part in {self._placements[name].part: None for name in sorted(names & self._placements.keys())}:
            if isinstance(part.layer, RmsNorm) or part.kind == "bias":
                delta = torch.zeros(self.slots, len(part.tensor), dtype=torch.float32, device=part.tensor.device)
                self._deltas[part] = delta
                if isinstance(part.layer, RmsNorm):
                    part.layer.delta = delta
                else:
                    part.layer.bias_delta = delta


def _segment_at(bank: LowRankBank, row: int) -> int:
    """The segment that begins at a row."""
    return [segment.first_row for segment in bank.segments].index(row)
