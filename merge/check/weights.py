"""Reading every weight once: for values that are not finite, and for figures that tell a wrong base."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from merge.check.finding import Finding, errors, warnings
from merge.check.inputs import Inputs
from merge.checkpoint import Checkpoint, CheckpointError
from merge.methods.vectors import row_blocks
from merge.selection import is_selected
from merge.task_vectors import is_unchanged

FAR, UNRELATED = 0.5, 0.9
"""Relative norms of a task vector from which on a base is doubted, and refused: two unrelated models of one size are
√2 apart, a model and the base that it was tuned from hardly ever a tenth."""

ALIKE = 0.9
"""Cosine of two task vectors from which on the fine-tunes seem to share a step that the base has not made."""

LOST = 0.01
"""Share of what a fine-tune changed that its expert may leave out without a warning."""

SAMPLED = 16
"""Matrices that a merge reads before it begins, for an estimate of the same figures."""

SAMPLE = 1 << 16
"""Entries of a tensor that cosines are estimated from, evenly spaced."""


@dataclass(frozen=True)
class Lineage:
    """The distances of a fine-tune from the base and from the others.

    Attributes:
        relative_norm: ‖θ_k − θ₀‖ / ‖θ₀‖ over the merged weights of two dimensions and more.
        cosine_to_base: of θ_k and θ₀, over the same.
        nearest: the fine-tune whose task vector has the highest cosine with this one's; None: it is the only one.
        nearest_cosine: that cosine, estimated from a sample.
    """

    relative_norm: float
    cosine_to_base: float
    nearest: str | None
    nearest_cosine: float | None

    def summary(self) -> str:
        """The distances in a line."""
        nearest = f"; most similar to {self.nearest} (cosine {self.nearest_cosine:.3f})" if self.nearest else ""
        return f"differs from the base by {self.relative_norm:.2%} of the base's norm{nearest}"


@dataclass
class _Sums:
    """Sums over the matrices of one fine-tune, as far as they have been read."""

    change: float = 0.0
    lost: float = 0.0
    own: float = 0.0
    dot: float = 0.0


def check_weights(
    inputs: Inputs, on_tensor: Callable[[], None] = lambda: None
) -> tuple[list[Finding], dict[str, Lineage]]:
    """Read all that is merged.

    Memory: some rows of two tensors, and a sample of each task vector of one tensor.

    Args:
        inputs: opened, and of equal names and shapes.
        on_tensor: called after each tensor.
    """
    names = sorted(inputs.merged().tensors)
    found, lineages, lost = _measured(inputs, dict.fromkeys(names, 1.0), on_tensor)
    if any(finding.severity == "error" for finding in found) or not lineages:
        return found, {}
    return found + _judged(lineages) + _left_out(inputs, lost, ""), lineages


def sample_weights(inputs: Inputs) -> list[Finding]:
    """Estimate from some matrices what `check_weights` computes from all, for a merge, which reads all of them later.

    What no expert will hold is read in full; of the other matrices some are drawn. All findings are warnings.
    """
    merged, left = inputs.merged().tensors, _without_expert(inputs)
    others = sorted(name for name, info in merged.items() if len(info.shape) > 1 and name not in left)
    drawn = sorted(random.Random(0).sample(others, min(SAMPLED, len(others))))
    scale = sum(prod(merged[name].shape) for name in others) / max(1, sum(prod(merged[name].shape) for name in drawn))
    found, lineages, lost = _measured(inputs, dict.fromkeys(sorted(left), 1.0) | dict.fromkeys(drawn, scale))
    if found:
        return []  # what cannot be read ends the merge, which names it
    changed = {task: lineage for task, lineage in lineages.items() if lineage.relative_norm > 0}
    note = "" if len(drawn) == len(others) else f" (estimated from {len(drawn)} of {len(others)} matrices)"
    doubts = [replace(finding, severity="warning", message=f"{finding.message}{note}") for finding in _judged(changed)]
    return doubts + _left_out(inputs, lost, note)


def _measured(
    inputs: Inputs, weights: Mapping[str, float], on_tensor: Callable[[], None] = lambda: None
) -> tuple[list[Finding], dict[str, Lineage], dict[str, float]]:
    """Read tensors, and weight each sum of squares over them.

    Returns:
        What cannot be read; the lineages; and the share of ‖τ‖² in matrices that no expert holds.
    """
    found: list[Finding] = []
    left = _without_expert(inputs)
    sums = {task: _Sums() for task in inputs.fine_tunes}
    origin_square = 0.0
    count = len(inputs.fine_tunes)
    gram = torch.zeros(count, count, dtype=torch.float64)
    for name, weight in weights.items():
        shape = inputs.base.tensors[name].shape
        every = max(1, prod(shape) // SAMPLE)
        for rows in row_blocks(shape):
            origin = _read(inputs.base, name, rows, "base", found)
            matrix = origin is not None and origin.ndim > 1
            origin_here = 0.0
            if matrix and origin is not None:
                origin_here = weight * _dot(origin, origin)
                origin_square += origin_here
            samples = []
            for task, fine_tune in inputs.fine_tunes.items():
                if is_unchanged(name, inputs.base, fine_tune):
                    if not matrix or origin is None:
                        continue
                    sums[task].own += origin_here
                    sums[task].dot += origin_here
                    samples.append(torch.zeros(-(-origin.numel() // every), dtype=torch.float64))
                    continue
                tensor = _read(fine_tune, name, rows, f"models.{task}", found)
                if tensor is None or origin is None or not matrix:
                    continue
                vector = tensor - origin
                square = weight * _dot(vector, vector)
                sums[task].change += square
                sums[task].lost += square if name in left else 0.0
                sums[task].own += weight * _dot(tensor, tensor)
                sums[task].dot += weight * _dot(tensor, origin)
                samples.append(vector.reshape(-1)[::every].double())
            if len(samples) == count:
                stacked = torch.stack(samples)
                gram += stacked @ stacked.T
        on_tensor()
    if any(finding.severity == "error" for finding in found) or origin_square == 0:
        return found, {}, {}
    cosines = _cosines(gram)
    lineages = {
        task: Lineage(
            math.sqrt(total.change / origin_square),
            total.dot / math.sqrt(total.own * origin_square) if total.own else 0.0,
            *_nearest(list(inputs.fine_tunes), cosines[number], number),
        )
        for number, (task, total) in enumerate(sums.items())
    }
    return found, lineages, {task: total.lost / total.change for task, total in sums.items() if total.change}


def _without_expert(inputs: Inputs) -> set[str]:
    """Matrices that are merged, and that no expert holds: by default embeddings and output head."""
    config = inputs.experts
    return {
        name
        for name, info in inputs.merged().tensors.items()
        if len(info.shape) == 2 and not is_selected(name, config.include, config.exclude or ())
    }


def _left_out(inputs: Inputs, lost: Mapping[str, float], note: str) -> list[Finding]:
    names = ", ".join(sorted(_without_expert(inputs)))
    return [
        finding
        for task, share in lost.items()
        if share >= LOST
        for finding in warnings(
            f"models.{task}",
            [
                f"{share:.0%} of its change (of ‖τ‖²) is in {names}, which its expert does not include; "
                f"`exclude: []` in the block `experts` includes it{note}"
            ],
        )
    ]


def _read(checkpoint: Checkpoint, name: str, rows: slice | None, subject: str, found: list[Finding]) -> Tensor | None:
    try:
        return checkpoint.tensor(name, torch.float32, rows=rows)
    except CheckpointError as error:
        told = errors(subject, _of_the_whole(checkpoint, name, error))
        found += [finding for finding in told if finding not in found]
        return None


def _of_the_whole(checkpoint: Checkpoint, name: str, error: CheckpointError) -> Sequence[str]:
    """What is wrong with a tensor of which some rows cannot be read."""
    try:
        checkpoint.tensor(name)
    except CheckpointError as worse:
        return worse.faults
    return error.faults


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.reshape(-1), other.reshape(-1)).double())


def _cosines(gram: Tensor) -> Tensor:
    norms = gram.diagonal().sqrt()
    return gram / (norms[:, None] * norms[None, :]).clamp_min(1e-300)


def _nearest(names: list[str], cosines: Tensor, own: int) -> tuple[str | None, float | None]:
    others = [
        (float(cosine), name) for number, (cosine, name) in enumerate(zip(cosines, names, strict=True)) if number != own
    ]
    return (None, None) if not others else max(others)[::-1]


def _judged(lineages: Mapping[str, Lineage]) -> list[Finding]:
    found: list[Finding] = []
    for task, lineage in lineages.items():
        subject = f"models.{task}"
        norm, cosine = lineage.relative_norm, lineage.cosine_to_base
        far = f"it is {norm:.3f} times the base's norm away from the base (cosine {cosine:.3f})"
        if lineage.relative_norm == 0:
            found += warnings(subject, ["it equals the base in every merged matrix: there is nothing to merge"])
        elif lineage.relative_norm >= UNRELATED:
            found += errors(subject, [f"{far}: it was not tuned from this base; name the one that it was tuned from"])
        elif lineage.relative_norm >= FAR:
            found += warnings(subject, [f"{far}: was it tuned from this base?"])
        if lineage.nearest_cosine is not None and lineage.nearest_cosine >= ALIKE and lineage.relative_norm > 0:
            found += warnings(
                subject,
                [
                    f"its task vector has a cosine of {lineage.nearest_cosine:.3f} with that of {lineage.nearest}: "
                    "either they are nearly the same model, or both come from another base than this one"
                ],
            )
    return found
