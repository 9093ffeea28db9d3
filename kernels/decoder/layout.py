"""The addresses of the tensors of a decoder's layers, in the layout that the compiled kernels read."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from operator import is_

from torch import Tensor

from kernels.decoder.layer import Layer, LinearWeights, NormWeights
from kernels.expert_linear import ExpertBank, LowRankBank, PackedWeight
from kernels.expert_linear.compiled import compiles


@dataclass(frozen=True)
class Layout:
    """Addresses of everything that stays from step to step: weights, banks and caches.

    Attributes:
        held: the objects that the addresses are of, kept so that no other can take their place unseen.
        windows: the distinct sliding windows.
        rotations: the distinct angles.
        addresses: `Layer` of csrc/kernels.h for each layer; None if the kernels do not know a type of theirs.
        slots: of the smallest bank or delta; None without any.
    """

    held: Sequence[object]
    windows: Sequence[int | None]
    rotations: Sequence[Hashable]
    addresses: array[int] | None
    slots: int | None

    @classmethod
    def of(cls, layers: Sequence[Layer], keys: Sequence[Tensor], values: Sequence[Tensor]) -> Layout:
        """Lay out layers and their caches."""
        held = list(_objects(layers, keys, values))
        windows = list(dict.fromkeys(layer.window for layer in layers))
        rotations = list(dict.fromkeys(layer.rotation for layer in layers))
        addresses = _addresses(layers, keys, values, windows, rotations) if _all_compile(held, keys[0]) else None
        slots = [part.slots for part in held if isinstance(part, ExpertBank | LowRankBank)]
        slots += [len(delta) for layer in layers for delta in _deltas(layer) if delta is not None]
        return cls(held, windows, rotations, addresses, min(slots, default=None))

    def fits(self, layers: Sequence[Layer], keys: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
        """Whether no object was replaced since."""
        return all(map(is_, _objects(layers, keys, values), self.held))


def _addresses(
    layers: Sequence[Layer],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    windows: Sequence[int | None],
    rotations: Sequence[Hashable],
) -> array[int]:
    addresses = array("q")
    for layer, key, value in zip(layers, keys, values, strict=True):
        for norm in _norms(layer):
            addresses.extend((0, 0) if norm is None else (norm.weight.data_ptr(), _address(norm.delta)))
        for linear in _linears(layer):
            packed = linear.weight if isinstance(linear.weight, PackedWeight) else None
            plain = linear.weight if isinstance(linear.weight, Tensor) else None
            addresses.extend((_address(plain), _address(linear.bias)))
            addresses.extend(0 if bank is None else bank.view_address for bank in (linear.bank, linear.low_rank))
            addresses.extend((_address(linear.bias_delta), 0 if packed is None else packed.view_address))
        place = windows.index(layer.window), rotations.index(layer.rotation)
        addresses.extend((key.data_ptr(), value.data_ptr(), *place))
    return addresses


def _all_compile(held: Sequence[object], cache: Tensor) -> bool:
    tensors = [part for part in held if isinstance(part, Tensor)]
    banks = [part for part in held if isinstance(part, ExpertBank)]
    low_rank = [part for part in held if isinstance(part, LowRankBank)]
    on_cpu = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    known = all(compiles(cache, bank) for bank in (None, *banks)) and all(
        compiles(cache, None, one) for one in low_rank
    )
    return on_cpu and known


def _objects(layers: Sequence[Layer], keys: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[object]:
    yield from keys
    yield from values
    for layer in layers:
        for norm in _norms(layer):
            if norm is not None:
                yield norm.weight
                yield norm.delta
        for linear in _linears(layer):
            yield linear.weight
            yield linear.bias
            yield linear.bank
            yield linear.low_rank
            yield linear.bias_delta


def _norms(layer: Layer) -> tuple[NormWeights | None, ...]:
    return layer.input_norm, layer.q_norm, layer.k_norm, layer.output_norm, layer.mlp_norm, layer.down_norm


def _linears(layer: Layer) -> tuple[LinearWeights, ...]:
    return layer.qkv, layer.output, layer.gate_up, layer.down


def _deltas(layer: Layer) -> Iterator[Tensor | None]:
    yield from (norm.delta for norm in _norms(layer) if norm is not None)
    yield from (linear.bias_delta for linear in _linears(layer))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
