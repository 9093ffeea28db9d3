"""Fitting a task's expert layer by layer, each layer against what the layers before it now give.

For a linear layer let x be its input in the fine-tune and x' its input in backbone + expert so far, on the task's
prompts. The residual E shall make the layer's output the fine-tune's:

    minimise Σ |W_k x − (W_m + E) x'|²,   whose normal equations are   E H = (W_k − W_m) H + W_k D

with H = Σ x' x'ᵀ and D = Σ (x − x') x'ᵀ. So a layer also corrects what earlier ones could not. Fitting each layer for
itself (x' = x, right-hand side (W_k − W_m) H) left seven times the divergence before distillation on the zoo's hardest
task.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merge.experts.calibration import Batch
from merge.experts.grams import add_outer, completed
from merge.experts.inputs import grouped_by_bytes, input_groups
from merge.experts.layers import LayerRun
from merge.experts.low_rank import Metric, metric_of
from merge.experts.running import faster_rounded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUDGET = 2 << 30
"""Bytes of the fine-tune's layer inputs held at once."""


@dataclass(frozen=True)
class Moments:
    """What the normal equations of the layers of one group need.

    Attributes:
        gram: H = Σ x' x'ᵀ, [K, K] float32.
        drift: D = Σ (x − x') x'ᵀ, [K, K] float32; of factors in bfloat16 if the models' products are. (H is not: a
            few inputs are large, and the rounding errors of their products would exceed the small ones.)
    """

    gram: Tensor
    drift: Tensor

    @cached_property
    def metric(self) -> Metric:
        """That of the student's inputs, not divided by their number."""
        return metric_of(self.gram)

    def target(self, tuned: Tensor, lacking: Tensor) -> Tensor:
        """Right-hand side of the normal equations.

        Semantics: (W_k − W_m) H + W_k D

        Args:
            tuned: W_k, [N, K] float32.
            lacking: W_k − W_m, [N, K] float32.
        """
        return (lacking @ self.gram).addmm_(tuned, self.drift)

    def corrected(self, weight: Tensor) -> Tensor:
        """The weight whose outputs over the student's inputs are nearest to those of W over the fine-tune's.

        Semantics: W' = W + W D (H + ridge_of(H) I)⁻¹, which minimises Σ |W x − W' x'|² + ridge_of(H) |W' − W|²

        Args:
            weight: W, [N, K] float32.
        """
        return weight + self.metric.undone(self.metric.transposed_undone(weight @ self.drift))


def layer_moments(
    fine_tune: "PreTrainedModel",
    student: "PreTrainedModel",
    batches: Sequence[Batch],
    wanted: Sequence[str],
    folder: Path | None = None,
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
        folder: for hidden states that are not kept in memory; None: the system's.
    """
    groups = input_groups(student, batches[0], wanted)
    parameters = dict(student.named_parameters())
    rows = sum(int(batch.real.sum()) for batch in batches)
    ours, theirs = LayerRun(fine_tune, batches, folder), LayerRun(student, batches, folder)
    numbers = range(len(batches))
    for _, of_layer in groupby(groups, lambda group: theirs.layer_of(group[0])):
        layer = list(of_layer)
        widths = [parameters[group[0]].shape[1] for group in layer]
        for run in grouped_by_bytes(layer, widths, rows, BUDGET):
            recorded = [ours.inputs(number, [group[0] for group in run]) for number in numbers]
            for group in run:
                expected = [inputs.pop(group[0]) for inputs in recorded]
                given = (theirs.inputs(number, group[:1])[group[0]] for number in numbers)
                moments = _moments(expected, given, faster_rounded(student))
                yield from ((name, moments) for name in group)


def _moments(expected: Sequence[Tensor], given: Iterable[Tensor], rounded: bool) -> Moments:
    columns = expected[0].shape[1]
    gram, drift = (expected[0].new_zeros(columns, columns) for _ in range(2))
    for x, theirs in zip(expected, given, strict=True):
        add_outer(gram, theirs)
        difference = x - theirs
        if rounded:
            drift += difference.to(torch.bfloat16).T @ theirs.to(torch.bfloat16)
        else:
            drift.addmm_(difference.T, theirs)
    return Moments(completed(gram), drift)
