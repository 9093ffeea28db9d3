"""Reading every weight once: for values that are not finite, and for figures that tell a wrong base."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.check.finding import Finding, errors, warnings
from merge.check.inputs import Inputs
from merge.checkpoint import Checkpoint, CheckpointError

FAR, UNRELATED = 0.5, 0.9
"""Relative norms of a task vector from which on a base is doubted, and refused: two unrelated models of one size are
√2 apart, a model and the base that it was tuned from hardly ever a tenth."""

ALIKE = 0.9
"""Cosine of two task vectors from which on the fine-tunes seem to share a step that the base has not made."""

SAMPLE = 1 << 16
"""Entries of a tensor that cosines are estimated from, evenly spaced."""


@dataclass(frozen=True)
class Lineage:
    """How a fine-tune lies to the base and to the others.

    Attributes:
        relative_norm: ‖θ_k − θ₀‖ / ‖θ₀‖ over the merged weights of two dimensions and more.
        cosine_to_base: of θ_k and θ₀, over the same.
        nearest: the fine-tune whose task vector has the highest cosine with this one's; None: there is no other.
        nearest_cosine: that cosine, estimated from a sample.
    """

    relative_norm: float
    cosine_to_base: float
    nearest: str | None
    nearest_cosine: float | None


def check_weights(
    inputs: Inputs, on_tensor: Callable[[], None] = lambda: None
) -> tuple[list[Finding], dict[str, Lineage]]:
    """Read all that is merged.

    Memory: two tensors, and a sample of each task vector of one tensor.

    Args:
        inputs: opened, and of equal names and shapes.
        on_tensor: called after each tensor.
    """
    found: list[Finding] = []
    squares, tune_squares, dots = (dict.fromkeys(inputs.fine_tunes, 0.0) for _ in range(3))
    origin_square = 0.0
    count = len(inputs.fine_tunes)
    gram = torch.zeros(count, count, dtype=torch.float64)
    for name in sorted(inputs.merged().tensors):
        origin = _read(inputs.base, name, "base", found)
        matrix = origin is not None and origin.ndim > 1
        if matrix and origin is not None:
            origin_square += _dot(origin, origin)
        samples = []
        for task, fine_tune in inputs.fine_tunes.items():
            tensor = _read(fine_tune, name, f"models.{task}", found)
            if tensor is None or origin is None or not matrix:
                continue
            vector = tensor - origin
            squares[task] += _dot(vector, vector)
            tune_squares[task] += _dot(tensor, tensor)
            dots[task] += _dot(tensor, origin)
            samples.append(vector.reshape(-1)[:: max(1, vector.numel() // SAMPLE)].double())
        if len(samples) == count:
            stacked = torch.stack(samples)
            gram += stacked @ stacked.T
        on_tensor()
    if any(finding.severity == "error" for finding in found) or origin_square == 0:
        return found, {}
    cosines = _cosines(gram)
    lineages = {
        task: Lineage(
            math.sqrt(squares[task] / origin_square),
            dots[task] / math.sqrt(tune_squares[task] * origin_square) if tune_squares[task] else 0.0,
            *_nearest(list(inputs.fine_tunes), cosines[number], number),
        )
        for number, task in enumerate(inputs.fine_tunes)
    }
    return found + _judged(lineages), lineages


def _read(checkpoint: Checkpoint, name: str, subject: str, found: list[Finding]) -> Tensor | None:
    try:
        return checkpoint.tensor(name, torch.float32)
    except CheckpointError as error:
        found += errors(subject, error.faults)
        return None


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
