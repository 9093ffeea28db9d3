"""Second moments of what linear layers read, C = Σ x xᵀ / n, for all layers of a model in one run over the prompts."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from merge.experts.calibration import Batch
from merge.experts.inputs import Group, input_groups, layer_inputs

BUDGET = 4 << 30
"""Bytes of the moments that are summed up in one run; a model with more of them is run several times."""

STRIP = 256
"""Rows of a matrix of moments that one product sums up. All at once took 1.7 times as long with 1,536 columns."""


@dataclass(frozen=True)
class Gram:
    """The second moments of one tensor that layers read.

    Attributes:
        weights: names of the weights of those layers.
        matrix: C, [K, K] float32.
    """

    weights: Group
    matrix: Tensor


def input_grams(model: PreTrainedModel, batches: Sequence[Batch], wanted: Collection[str]) -> Iterator[Gram]:
    """Measure what the layers of the wanted weights read at the real positions.

    Memory: `BUDGET` bytes, or one tensor's moments if they are more; and a batch's inputs of those layers.

    Args:
        model: the decoder, with its weights assigned.
        batches: the task's prompts with their continuations.
        wanted: names of 2-D weights; those that no linear layer uses are in no group.
    """
    parameters = dict(model.named_parameters())
    groups = input_groups(model, batches[0], wanted)
    count = sum(int(batch.real.sum()) for batch in batches)
    while groups:
        run: list[Group] = []
        room = BUDGET
        while groups and (not run or 4 * parameters[groups[0][0]].shape[1] ** 2 <= room):
            room -= 4 * parameters[groups[0][0]].shape[1] ** 2
            run.append(groups.pop(0))
        sums = [torch.zeros(2 * (parameters[group[0]].shape[1],)) for group in run]
        for batch in batches:
            inputs = layer_inputs(model, batch, [group[0] for group in run])
            for total, group in zip(sums, run, strict=True):
                add_outer(total, inputs.pop(group[0]))
        for group in run:
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
