"""Fitting a task's expert layer by layer, each layer against what the layers before it now give.

For a linear layer let x be its input in the fine-tune and x' its input in backbone + expert so far, on the task's
prompts. The residual E shall make the layer's output the fine-tune's:

    minimise Σ |W_k x − (W_m + E) x'|²,   whose normal equations are   E H = W_k C − W_m H,   H = Σ x' x'ᵀ,  C = Σ x x'ᵀ

so a layer also corrects what earlier ones could not. Fitting each layer for itself (x' = x, right-hand side
(W_k − W_m) H) left seven times the divergence before distillation on the zoo's hardest task.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from merge.experts.calibration import Batch
from merge.experts.inputs import grouped_by_bytes, input_groups
from merge.experts.layers import LayerRun

BUDGET = 2 << 30
"""Bytes of the fine-tune's layer inputs held at once."""


@dataclass(frozen=True)
class Moments:
    """What the normal equations of the layers of one group need.

    Attributes:
        gram: H = Σ x' x'ᵀ, [K, K] float32.
        cross: C = Σ x x'ᵀ, [K, K] float32.
    """

    gram: Tensor
    cross: Tensor

    def target(self, tuned: Tensor, stored: Tensor) -> Tensor:
        """Right-hand side of the normal equations.

        Semantics: W_k C − W_m H

        Args:
            tuned: W_k, [N, K] float32.
            stored: W_m, [N, K] float32.
        """
        return tuned @ self.cross - stored @ self.gram


def layer_moments(
    fine_tune: PreTrainedModel, student: PreTrainedModel, batches: Sequence[Batch], wanted: Sequence[str]
) -> Iterator[tuple[str, Moments]]:
    """Yield each wanted linear weight, in the order of the computation, with its moments.

    Whoever iterates puts a layer's residual into `student` before taking the next, so that later layers see it. Layers
    that read one tensor share one `Moments`.

    Memory: the fine-tune's inputs of some layers, `BUDGET` bytes (one group's at least), the hidden states of both
    models, and two [K, K] matrices. Time: about three runs of each decoder layer; a partial run of the whole model for
    each group of layers that stands outside of them.

    Args:
        fine_tune: holds θ_k.
        student: holds the backbone, and the expert as far as it is known.
        batches: the task's prompts.
        wanted: names of 2-D weights; those that no linear layer uses are left out.
    """
    groups = input_groups(student, batches[0], wanted)
    parameters = dict(student.named_parameters())
    rows = sum(int(batch.real.sum()) for batch in batches)
    ours, theirs = LayerRun(fine_tune, batches), LayerRun(student, batches)
    numbers = range(len(batches))
    for _, of_layer in groupby(groups, lambda group: theirs.layer_of(group[0])):
        layer = list(of_layer)
        widths = [parameters[group[0]].shape[1] for group in layer]
        for run in grouped_by_bytes(layer, widths, rows, BUDGET):
            recorded = [ours.inputs(number, [group[0] for group in run]) for number in numbers]
            for group in run:
                expected = [inputs.pop(group[0]) for inputs in recorded]
                moments = _moments(expected, (theirs.inputs(number, group[:1])[group[0]] for number in numbers))
                yield from ((name, moments) for name in group)


def _moments(expected: Sequence[Tensor], given: Iterable[Tensor]) -> Moments:
    columns = expected[0].shape[1]
    gram, cross = torch.zeros(columns, columns), torch.zeros(columns, columns)
    for x, theirs in zip(expected, given, strict=True):
        gram.addmm_(theirs.T, theirs)
        cross.addmm_(x.T, theirs)
    return Moments(gram, cross)
