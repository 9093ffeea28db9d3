"""The tensors of a quantised module in a checkpoint."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from merge.bundle.quantised.packing import pack, packed_columns, unpack
from merge.bundle.quantised.scheme import Scheme
from merge.bundle.quantised.settings import QuantisationError
from merge.bundle.quantised.weights import QuantisedWeight

PACKED, SCALE, SHAPE = "_packed", "_scale", "_shape"
"""What `compressed-tensors` puts behind the name of a weight: int32 words, scales [N, groups], and N and K as int64."""

PARTS = (PACKED, SCALE, SHAPE)

_MORE = ("_zero_point", "_g_idx", "_global_scale")
"""What other schemes add: a zero for each scale, columns in another order, a scale of scales."""


def packed_tensors(name: str, weight: QuantisedWeight) -> dict[str, Tensor]:
    """The tensors of a module, by name.

    Args:
        name: of the weight, as in `model.layers.0.mlp.up_proj.weight`.
        weight: what to store.
    """
    return {
        name + PACKED: pack(weight.value, weight.scheme.bits),
        name + SCALE: weight.scale,
        name + SHAPE: torch.tensor(weight.shape, dtype=torch.int64),
    }


def stored_parts(names: Collection[str]) -> set[str]:
    """Names of the weights that are quantised, among the names of a checkpoint's tensors.

    Raises:
        QuantisationError: a weight lacks a part, or has one of a scheme that is not supported.
    """
    weights = {name.removesuffix(PACKED) for name in names if name.endswith("weight" + PACKED)}
    for name in sorted(names):
        for part in _MORE:
            if name.endswith("weight" + part):
                raise QuantisationError(
                    f"{name}: weights with zero points, activation ordering or global scales are not supported; give a "
                    "symmetric checkpoint, or the unquantised one"
                )
        weight = next((name.removesuffix(part) for part in (SCALE, SHAPE) if name.endswith("weight" + part)), None)
        if weight is not None and weight not in weights:
            raise QuantisationError(f"{name} has no {weight + PACKED} beside it: the checkpoint is damaged")
    for weight in sorted(weights):
        for part in (SCALE, SHAPE):
            if weight + part not in names:
                raise QuantisationError(f"{weight + part} is missing: the checkpoint is damaged")
    return weights


def read_weight(name: str, read: Callable[[str], Tensor], schemes: Collection[Scheme]) -> QuantisedWeight:
    """Read a module's tensors.

    The scheme is the one that the shapes fit, so the names that `quantization_config` targets need not be understood.

    Args:
        name: of the weight.
        read: gives a tensor by its name.
        schemes: those that `quantization_config` names.

    Raises:
        QuantisationError: dtypes and shapes that do not fit together, or scales that are not finite and positive; the
            message names the tensor.
    """
    packed, scale, shape = read(name + PACKED), read(name + SCALE), read(name + SHAPE)
    if shape.dtype not in {torch.int64, torch.int32} or shape.numel() != 2 or bool((shape < 1).any()):
        raise QuantisationError(f"{name + SHAPE} must be the two sizes of the weight, not {shape.tolist()}")
    rows, columns = (int(size) for size in shape.flatten())
    if packed.dtype != torch.int32 or packed.dim() != 2 or packed.shape[0] != rows:
        raise QuantisationError(
            f"{name + PACKED} is {packed.dtype} {list(packed.shape)}; {name + SHAPE} says {rows} rows of int32"
        )
    ordered = sorted(schemes, key=lambda scheme: (scheme.bits, scheme.group or columns))
    fitting = [scheme for scheme in ordered if packed_columns(columns, scheme.bits) == packed.shape[1]]
    if not fitting:
        said = " or ".join(str(packed_columns(columns, bits)) for bits in sorted({scheme.bits for scheme in schemes}))
        raise QuantisationError(f"{name + PACKED} is {list(packed.shape)}; {columns} columns take {said} words a row")
    sized = scale.dtype.is_floating_point and scale.dim() in {1, 2} and scale.shape[0] == rows
    found = [scheme for scheme in fitting if sized and scale.numel() == rows * scheme.scales(columns)]
    if not found:
        said = " or ".join(f"[{rows}, {scheme.scales(columns)}]" for scheme in fitting)
        raise QuantisationError(f"{name + SCALE} is {scale.dtype} {list(scale.shape)}; it must be floating {said}")
    if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
        bad = int((~(torch.isfinite(scale) & (scale > 0))).sum())
        raise QuantisationError(f"{name + SCALE}: {bad} of {scale.numel()} scales are not finite and positive")
    return QuantisedWeight(unpack(packed, found[0].bits, columns), scale.reshape(rows, -1), found[0])
