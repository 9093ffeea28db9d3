"""What the report draws beside the summary, as far as the bundle's inputs can still be read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from merge.bundle import Bundle
from merge.checkpoint import Checkpoint
from merge.inspect.confusion import Confusion, cross_validated
from merge.inspect.inputs import Inputs, find_inputs
from merge.inspect.similarity import PairTable, cosines, dense_residual
from merge.inspect.spectrum import Spectra, frequencies, radial_spectra
from merge.methods import find_method
from merge.methods.highpass import apply_mask, kept_fraction, normalized_mask, official_mask
from merge.progress import Progress
from merge.recipe import Recipe

MOST_MATRICES = 40
"""Weights that spectra are taken of, evenly spread over the model: of a large one not all need be transformed."""

Filter = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pictures:
    """The measurements behind the report's pictures.

    Attributes:
        spectra: of the task vectors, or of the experts if the fine-tunes are gone.
        task_similarity: cosines of the task vectors; None if they are gone.
        confusion: of the router; None without prompts.
        remarks: what could not be measured and why.
    """

    spectra: Spectra | None
    task_similarity: PairTable | None
    confusion: Confusion | None
    remarks: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """A document of plain values."""
        return asdict(self)


def take_pictures(bundle: Bundle, shown: Progress) -> Pictures:
    """Find a bundle's inputs and measure what they allow.

    Time: a digest of every checkpoint, two transforms of up to 40 matrices a task, four trainings of the router.
    """
    shown.say("inputs: looking for the models and prompts of the recipe")
    inputs = find_inputs(bundle)
    remarks = list(inputs.missing)
    names = _matrices(bundle)
    similarity = None
    if inputs.base is not None and inputs.fine_tunes:
        base, tunes = inputs.base, inputs.fine_tunes
        shown.say(f"task vectors: comparing {len(tunes)}")
        similarity = cosines(sorted(tunes), names, lambda task, name: _vector(tunes[task], base, name))
    spectra = _spectra(bundle, inputs, names, shown)
    confusion = None
    if inputs.prompts is not None and inputs.recipe is not None and bundle.router_dir is not None:
        shown.say("router: cross-validating")
        try:
            confusion = cross_validated(inputs.prompts, inputs.recipe.router, backbone=bundle.backbone_dir)
        except ValueError as error:
            remarks.append(f"The router was not cross-validated: {error}.")
    return Pictures(spectra, similarity, confusion, tuple(remarks))


def _matrices(bundle: Bundle) -> list[str]:
    return sorted({name for task in bundle.expert_names for name in bundle.read_expert(task).matrices})


def _spectra(bundle: Bundle, inputs: Inputs, names: Sequence[str], shown: Progress) -> Spectra | None:
    if not names:
        return None
    names = names[:: -(-len(names) // MOST_MATRICES)]
    if inputs.base is None or not inputs.fine_tunes:
        residuals = (
            (dense_residual(expert, name),)
            for expert in map(bundle.read_expert, bundle.expert_names)
            for name in expert.matrices
            if name in names
        )
        curves, count = radial_spectra(("residuals of the experts",), residuals)
        return Spectra("The experts' residuals; the task vectors are unavailable.", frequencies(), curves, count)
    keep = None if inputs.recipe is None else _filter(inputs.recipe)
    labels = ("task vectors",) if keep is None else ("task vectors", "after the filter")
    with shown.stage("spectra", len(names) * len(inputs.fine_tunes)) as advance:
        curves, count = radial_spectra(labels, _filtered(inputs.base, inputs, names, keep), advance)
    what = "The task vectors." if keep is None else "The task vectors, before and after the recipe's filter."
    return Spectra(what, frequencies(), curves, count)


def _filtered(
    base: Checkpoint, inputs: Inputs, names: Sequence[str], keep: Filter | None
) -> Iterator[tuple[Tensor, ...]]:
    for task in sorted(inputs.fine_tunes):
        for name in names:
            vector = _vector(inputs.fine_tunes[task], base, name)
            yield (vector,) if keep is None else (vector, keep(vector))


def _filter(recipe: Recipe) -> Filter | None:
    """What the recipe's method does to a task vector's frequencies; None if it leaves them alone."""
    if recipe.merge_method != "fr":
        return None
    try:
        settings: Any = find_method("fr").parameters.model_validate(recipe.parameters)
    except ValidationError:
        return None  # parameters that differ from tensor to tensor: no one filter to draw

    def keep(matrix: Tensor) -> Tensor:
        height, width = matrix.shape
        official = settings.filter_ == "official"
        mask = official_mask(height, width, settings.r) if official else normalized_mask(height, width, settings.d0)
        return matrix * kept_fraction(mask) if settings.control == "shrink" else apply_mask(matrix, mask)

    return keep


def _vector(fine_tune: Checkpoint, base: Checkpoint, name: str) -> Tensor:
    return fine_tune.tensor(name, torch.float32) - base.tensor(name, torch.float32)
