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
                x = inputs.pop(group[0])
                # In float32: a few inputs are large, and what bfloat16 rounds of their products exceeds the small ones.
                total.addmm_(x.T, x)
        for group in run:
            yield Gram(group, sums.pop(0).div_(count))
