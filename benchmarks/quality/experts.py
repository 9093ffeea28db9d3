"""Experts beside a backbone: cutting the paper's data-free ones, storing, counting bytes, adding them."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from benchmarks.quality.domain import Domain, Residual, Weights
from merge.bundle.gaps import encode_gaps
from merge.bundle.quantise import quantise_rows
from merge.experts import code_factor
from merge.experts.magnitude import largest_entries, measure

Storage = Literal["bfloat16", "int8"]

FACTORS = (0.5, 1.0, 1.5, 2.0)
"""Multiples of the closed form of μ that are tried on validation data."""


def data_free(
    domain: Domain, backbone: Weights, base: Weights, tuned: Mapping[str, Tensor], density: float, factor: float
) -> Residual:
    """The paper's expert: each row's largest entries of the task vector, times μ; 1-D parameters exact.

    Args:
        domain: says which matrices are left aside.
        backbone: θ_m.
        base: θ₀.
        tuned: θ_k.
        density: share of a row's entries.
        factor: μ as a multiple of the released code's closed form.
    """
    names = [
        name
        for name, tensor in base.items()
        if tensor.ndim == 2 and not any(fnmatchcase(name, pattern) for pattern in domain.aside)
    ]
    kept = {name: max(1, round(density * base[name].shape[1])) for name in names}
    per_row = {base[name].shape[1]: k for name, k in kept.items()}
    mu = factor * code_factor(measure((tuned[name] - base[name] for name in names), per_row), density)
    index, value = {}, {}
    for name in names:
        vector = tuned[name] - base[name]
        index[name] = largest_entries(vector, kept[name])
        value[name] = vector.gather(1, index[name]) * mu
    dense = {name: tuned[name] - backbone[name] for name, tensor in base.items() if tensor.ndim == 1}
    return Residual(index, value, dense)


def with_expert(backbone: Weights, expert: Residual, storage: Storage) -> dict[str, Tensor]:
    """W_backbone + E, with E's values as they are stored."""
    weights = dict(backbone)
    for name, value in expert.value.items():
        weights[name] = backbone[name].scatter_add(1, expert.index[name], stored(value, storage))
    for name, delta in expert.dense.items():
        weights[name] = backbone[name] + delta
    return weights


def stored(value: Tensor, storage: Storage) -> Tensor:
    """Values [N, k] as they are read back: rounded to bfloat16, or to 8 bits with a scale for each row."""
    if storage == "bfloat16":
        return value.to(torch.bfloat16).float()
    quantised, scale = quantise_rows(value)
    return quantised.float() * scale.float()[:, None]


def expert_bytes(expert: Residual, storage: Storage) -> int:
    """Bytes of an expert file's tensors (`merge.bundle`): 1-D residuals in float32, and of each weight the entries.

    Args:
        expert: the expert.
        storage: 4 bytes an entry with its column; or 8-bit values, a scale a row, and columns as distances.
    """
    total = sum(4 * delta.numel() for delta in expert.dense.values())
    for name, value in expert.value.items():
        if storage == "bfloat16":
            total += 4 * value.numel()
            continue
        quantised, scale = quantise_rows(value)
        order = expert.index[name].sort(1)
        width = int(order.values.max()) + 1
        gaps, stream = encode_gaps(order.values, quantised.gather(1, order.indices), width)
        total += min(gaps.nbytes + stream.nbytes, 3 * value.numel()) + scale.nbytes
    return total


def backbone_bytes(backbone: Weights, domain: Domain) -> tuple[int, int]:
    """Bytes in bfloat16: of the whole backbone, and without the matrices set aside."""
    counted = {name: 2 * tensor.numel() for name, tensor in backbone.items()}
    aside = [
        name
        for name, tensor in backbone.items()
        if tensor.ndim == 2 and any(fnmatchcase(name, pattern) for pattern in domain.aside)
    ]
    return sum(counted.values()), sum(size for name, size in counted.items() if name not in aside)
