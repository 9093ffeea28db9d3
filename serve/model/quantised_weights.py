"""Reading weights of 8 or 4 bits into a decoder, stored in this form or rounded while they are read."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kernels.expert_linear import PackedWeight
from kernels.expert_linear.bank import ROW_BLOCK
from kernels.rounding import least_error
from merge.bundle import BundleError, open_shard
from merge.bundle.quantised import (
    INT8,
    PARTS,
    QuantisationError,
    QuantisedWeight,
    Scheme,
    has_rounded_embeddings,
    is_embedding,
    quantise,
    read_quantisation,
    read_weight,
    recovered,
    scheme_of,
    stored_parts,
)
from merge.bundle.quantised import least_error as plain_least_error
from serve.model.decoder import Decoder
from serve.model.errors import ModelError
from serve.model.huge_pages import hold_together
from serve.model.layers import Linear, Part, Placement
from serve.model.routed import Router

GROUP = 32
"""Columns that share a scale in a `PackedWeight` of 4 bits."""

ELEMENTS = 1 << 22
"""Most elements of a weight that are rounded at a time: the intermediate results take a few times 17 MB."""


@dataclass(frozen=True)
class Stored:
    """How a model directory's weights are quantised.

    Attributes:
        schemes: of packed weights; empty: the model is not quantised.
        embeddings: whether the embedding and the head are floating numbers that fit into 8 bits.
    """

    schemes: frozenset[Scheme] = frozenset()
    embeddings: bool = False


def quantisation_of(directory: Path) -> Stored:
    """How a model directory's weights are quantised.

    Raises:
        ModelError: in a way that is not supported.
    """
    config = json.loads((directory / "config.json").read_bytes())
    try:
        return Stored(read_quantisation(config), has_rounded_embeddings(config))
    except QuantisationError as error:
        raise ModelError(f"{directory}: {error}") from error


class QuantisedReader:
    """The tensors of a directory's files, by name, and how the weights among them become a decoder's."""

    def __init__(self, files: Sequence[Path], stored: Stored, storage: str | None) -> None:
        """Look at the names.

        Args:
            files: of weights.
            stored: how the weights in them are quantised.
            storage: int8 or int4, for weights that are stored unquantised; None: they stay so.

        Raises:
            ModelError: a file that cannot be read, or parts of a quantised weight without the others.
        """
        self._stored, self._storage, self._dtype = stored, storage, torch.float32
        self._file: dict[str, Path] = {}
        for file in files:
            try:
                with open_shard(file) as shard:
                    self._file |= dict.fromkeys(shard.keys(), file)
            except BundleError as error:
                raise ModelError(str(error)) from error
        try:
            self._quantised = stored_parts(self._file.keys())
        except QuantisationError as error:
            raise ModelError(f"{files[0].parent}: {error}") from error
        parts = {name + part for name in self._quantised for part in PARTS}
        self.names = {*(self._file.keys() - parts), *self._quantised}

    def file(self, name: str) -> Path:
        """The file that holds a parameter."""
        return self._file[name] if name in self._file else self._file[name + PARTS[0]]

    def load(self, decoder: Decoder, packs: bool) -> None:
        """Read all parameters of a decoder.

        Args:
            decoder: whose weights have memory but no values; those that are packed get other memory.
            packs: hold weights in few bits if they can be; otherwise they are multiplied out.

        Raises:
            ModelError: a tensor that is damaged, or of another shape (named).
        """
        stacked: dict[Part, list[tuple[str, Placement]]] = {}
        for name, placement in decoder.placements.items():
            stacked.setdefault(placement.part, []).append((name, placement))
        self._dtype = decoder.dtype
        packed = {part for part, members in stacked.items() if packs and self._packs(part, members)}
        _give_back(packed, decoder.device)
        hold_together([part.tensor for part in stacked if part not in packed])
        for part, members in stacked.items():
            if part not in packed:
                for name, placement in members:
                    found = self._read(name, placement)
                    placement.target.copy_(found.dequantised() if isinstance(found, QuantisedWeight) else found)
                continue
            assert isinstance(part.layer, Linear)
            weight = self._stack([(name, self._read(name, placement)) for name, placement in members])
            part.layer.weight = weight.to(decoder.device)
        if decoder.device.type == "cpu":
            _move([part.layer for part in packed if isinstance(part.layer, Linear)])

    def _packs(self, part: Part, members: Sequence[tuple[str, Placement]]) -> bool:
        if not isinstance(part.layer, Linear) or isinstance(part.layer, Router) or part.kind == "bias":
            return False
        if all(name not in self._quantised for name, _ in members):
            return self._storage is not None or self._is_rounded(members)
        groups = {scheme.group for scheme in self._stored.schemes if scheme.bits == 4}
        fits = all(group is None or group % GROUP == 0 for group in groups)
        return fits and all(name in self._quantised for name, _ in members)

    def _is_rounded(self, members: Sequence[tuple[str, Placement]]) -> bool:
        return self._stored.embeddings and all(is_embedding(name) for name, _ in members)

    def _read(self, name: str, placement: Placement) -> Tensor | QuantisedWeight:
        file = self.file(name)
        if name in self._quantised:
            try:
                found: Tensor | QuantisedWeight = read_weight(name, self._tensor, self._stored.schemes)
            except QuantisationError as error:
                raise ModelError(f"{file}: {error}") from error
        else:
            found = self._tensor(name)
        if tuple(found.shape) != placement.shape:
            raise ModelError(f"{file}: {name} is {list(found.shape)}; config.json implies {list(placement.shape)}")
        return found

    def _tensor(self, name: str) -> Tensor:
        file = self._file[name]
        try:
            with open_shard(file) as shard:
                tensor: Tensor = shard.get_tensor(name)
        except BundleError as error:
            raise ModelError(str(error)) from error
        return tensor

    def _stack(self, members: Sequence[tuple[str, Tensor | QuantisedWeight]]) -> Tensor | PackedWeight:
        """One layer's weight from those that it stacks; multiplied out if they differ in their bits.

        It is rounded some rows at a time: no copy of the whole weight is made beside the packed one.
        """
        schemes = [self._scheme(name, weight) for name, weight in members]
        bits = {scheme.bits for scheme in schemes}
        whole = all(scheme.group is None for scheme in schemes)
        if len(bits) > 1 or (bits == {8} and not whole):
            found = [self._rounded(name, weight, slice(None)) for name, weight in members]
            return torch.cat([weight.dequantised(self._dtype) for weight in found])
        rows, columns = sum(weight.shape[0] for _, weight in members), members[0][1].shape[1]
        packed = PackedWeight.allocate(rows, columns, bits.pop())
        step = max(1, ELEMENTS // columns // ROW_BLOCK) * ROW_BLOCK
        for start in range(0, rows, step):
            parts = [self._rounded(*part) for part in _within(members, start, start + step)]
            scale = torch.cat([_by_group(weight) if packed.bits == 4 else weight.scale for weight in parts])
            packed.fill(torch.cat([weight.value for weight in parts]), scale.to(torch.float32), start)
        return packed

    def _scheme(self, name: str, weight: Tensor | QuantisedWeight) -> Scheme:
        if isinstance(weight, QuantisedWeight):
            return weight.scheme
        return INT8 if self._storage is None else scheme_of(self._storage, name)

    def _rounded(self, name: str, weight: Tensor | QuantisedWeight, rows: slice) -> QuantisedWeight:
        """Some rows of a weight in few bits."""
        if isinstance(weight, QuantisedWeight):
            return weight.rows(rows)
        some = weight[rows]
        # A sum is finite only if all values are, and takes a tenth of the time that looking at each takes.
        bad = 0 if bool(torch.isfinite(some.sum(dtype=torch.float32))) else int((~torch.isfinite(weight)).sum())
        if bad:
            raise ModelError(f"{self.file(name)}: {name} holds {bad} NaN or infinite values of {weight.numel()}")
        if self._storage is None:
            return recovered(some, _rounds)
        return quantise(some, scheme_of(self._storage, name), _rounds)


def _within(
    members: Sequence[tuple[str, Tensor | QuantisedWeight]], first: int, last: int
) -> Iterator[tuple[str, Tensor | QuantisedWeight, slice]]:
    """The rows [first, last) of stacked weights, as rows of each of them."""
    start = 0
    for name, weight in members:
        rows = slice(max(0, first - start), min(weight.shape[0], last - start))
        if rows.start < rows.stop:
            yield name, weight, rows
        start += weight.shape[0]


def _rounds(v: Tensor, scales: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """`merge.bundle.quantised.least_error`, by the compiled kernel if there is one."""
    flat, candidates = v.reshape(-1, v.shape[-1]), scales.reshape(-1, scales.shape[-1])
    found = least_error(flat, candidates.to(torch.float32), scheme.lowest, scheme.highest)
    if found is None:
        return plain_least_error(v, scales, scheme)
    integers, chosen = found
    return integers.view(v.shape), candidates.gather(1, chosen[:, None]).view(v.shape[:-1])


def _by_group(weight: QuantisedWeight) -> Tensor:
    """Scales [N, groups of 32 columns]."""
    groups = -(-weight.shape[1] // GROUP)
    repeats = groups if weight.scheme.group is None else weight.scheme.group // GROUP
    return weight.scale.repeat_interleave(repeats, 1)[:, :groups]


def _give_back(parts: Collection[Part], device: torch.device) -> None:
    """Free the memory that a GPU holds for weights which are packed instead."""
    if device.type == "cpu":
        return  # pages that nothing was written to take no memory
    for part in parts:
        part.layer.weight = part.tensor.new_empty(part.tensor.shape, device="meta")
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _move(layers: Sequence[Linear]) -> None:
    """Bring packed weights together into huge pages, one after another: both copies of one alone exist at a time."""
    packed = [layer for layer in layers if isinstance(layer.weight, PackedWeight)]
    fresh = [torch.empty_like(layer.weight.data) for layer in packed]
    hold_together(fresh)
    for layer, data in zip(packed, fresh, strict=True):
        assert isinstance(layer.weight, PackedWeight)
        layer.weight = replace(layer.weight, data=data.copy_(layer.weight.data))
