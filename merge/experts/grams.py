"""Second moments of what linear layers read, C = Σ x xᵀ / n, layer after layer."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merge.experts.calibration import Batch
from merge.experts.inputs import Group, input_groups
from merge.experts.layers import LayerRun
from merge.experts.running import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STRIP = 256
"""Rows of a matrix of moments that one product sums up. All at once took 1.7 times as long with 1,536 columns."""


@dataclass(frozen=True)
class Gram:
    """The second moments of one tensor that layers read.

    Attributes:
        weights: names of the weights of those layers.
        matrix: C, [K, K] float32; empty if it is not known.
    """

    weights: Group
    matrix: Tensor

    @property
    def power(self) -> Tensor:
        """[K], the mean square of each input, as a copy."""
        return power_of(self.matrix).clone()


def power_of(matrix: Tensor) -> Tensor:
    """The diagonal of a matrix of moments; of an empty one, which stands for moments that are not known, itself."""
    return matrix.diagonal() if matrix.numel() else matrix


def input_grams(
    model: "PreTrainedModel", batches: Sequence[Batch], wanted: Collection[str], folder: Path | None = None
) -> Iterator[Gram]:
    """Measure what the layers of the wanted weights read at the real positions.

    Memory: the moments of one decoder layer, a batch's inputs of it, and the hidden states of all batches. Time: two
    runs of each decoder layer; a partial run of the model for layers that stand outside of them.

    Args:
        model: the decoder, with its weights assigned.
        batches: the task's prompts with their continuations.
        wanted: names of 2-D weights; those that no linear layer uses are in no group.
        folder: for hidden states that are not kept in memory; None: the system's.
    """
    parameters = dict(model.named_parameters())
    groups = input_groups(model, batches[0], wanted)
    count = sum(int(batch.real.sum()) for batch in batches)
    layers = LayerRun(model, batches, folder)
    for _, of_layer in groupby(groups, lambda group: layers.layer_of(group[0])):
        layer = list(of_layer)
        sums = [torch.zeros(2 * (parameters[group[0]].shape[1],), device=device_of(model)) for group in layer]
        for number in range(len(batches)):
            inputs = layers.inputs(number, [group[0] for group in layer])
            for total, group in zip(sums, layer, strict=True):
                add_outer(total, inputs.pop(group[0]))
        for group in layer:
            yield Gram(group, completed(sums.pop(0)).div_(count))


def add_outer(total: Tensor, x: Tensor) -> None:
    """Add the outer products of inputs to a sum of them, below the diagonal and a little above it.

    Semantics: total_ij += Σ_t x_ti x_tj for j ≤ i

    In float32: a few inputs are large, and what bfloat16 rounds of their products exceeds the small ones.

    Args:
        total: [K, K] float32, changed.
        x: [T, K] float32.
    """
    for start in range(0, len(total), STRIP):
        stop = min(start + STRIP, len(total))
        total[start:stop, :stop].addmm_(x[:, start:stop].T, x[:, :stop])


def completed(total: Tensor) -> Tensor:
    """The whole of a symmetric matrix that is known below its diagonal."""
    return total.tril_().add_(total.tril(-1).T)
