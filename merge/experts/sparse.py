"""Sparse experts: which entries of a weight are kept, and with which values."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from merge.checkpoint import Checkpoint
from merge.experts.activation import fit_values, greedy_support
from merge.experts.calibration import Batch
from merge.experts.config import FACTORS
from merge.experts.distill import Target, divergence
from merge.experts.fit import layer_moments
from merge.experts.magnitude import Magnitudes, code_factor, largest_entries, measure, paper_factors
from merge.experts.placed import Values, placed
from merge.experts.running import assign
from merge.experts.sources import Calibration, Sources, difference
from merge.experts.storage import as_stored


def task_magnitudes(sources: Sources, fine_tune: Checkpoint) -> Magnitudes:
    """What the closed forms of μ need of one fine-tune."""
    names = sources.weights()
    columns = {sources.base.tensors[name].shape[1] for name in names}
    vectors = (_vector(name, fine_tune, sources) for name in names)
    return measure(vectors, {width: sources.entries(width) for width in columns})


def expert_factors(sources: Sources, fine_tunes: Mapping[str, Checkpoint]) -> dict[str, float]:
    """μ of each task, if it is a number or a closed form.

    Returns:
        By name; empty for a configuration without `rescaled` values, or with `calibrated` ones.
    """
    rescale = sources.config.rescale
    if sources.config.values != "rescaled" or rescale == "calibrated":
        return {}
    if isinstance(rescale, float):
        return dict.fromkeys(fine_tunes, rescale)
    if rescale == "nearest":
        return {name: nearest_factor(sources, item) for name, item in fine_tunes.items()}
    magnitudes = {name: task_magnitudes(sources, item) for name, item in fine_tunes.items()}
    if rescale == "paper":
        return paper_factors(magnitudes, sources.density)
    return {name: code_factor(item, sources.density) for name, item in magnitudes.items()}


def nearest_factor(sources: Sources, fine_tune: Checkpoint) -> float:
    """The μ with which backbone + expert comes nearest to the fine-tune: never farther from it than the backbone is.

    Semantics: argmin_μ ‖θ_k − θ_m − μ S(τ)‖² = ⟨θ_k − θ_m, S(τ)⟩ / ‖S(τ)‖², S what keeps the selected entries, over all
    weights. It is 1 if the kept entries replace the backbone's, or are selected from θ_k − θ_m itself.
    """
    if sources.config.selection == "residual" or sources.config.overlap == "replace":
        return 1.0
    product = size = 0.0
    for name in sources.weights():
        vector, lacking = _vector(name, fine_tune, sources), sources.lacking(fine_tune, name)
        index = largest_entries(vector, sources.entries(vector.shape[1]))
        kept = vector.gather(1, index).double()
        product += float((kept * lacking.gather(1, index)).sum())
        size += float(kept.square().sum())
    return product / size if size else 1.0


def data_free(fine_tune: Checkpoint, sources: Sources, factor: float) -> dict[str, Values]:
    """Entries that need no prompts.

    Args:
        fine_tune: θ_k.
        sources: base, stored backbone and settings.
        factor: μ for `rescaled` values.
    """
    return {key: _data_free(key, fine_tune, sources, factor) for key in sources.weights()}


def calibrated(
    calibration: Calibration,
    batches: Sequence[Batch],
    teacher: Sequence[Target],
    fine_tune: Checkpoint,
    sources: Sources,
    dense: Mapping[str, Values],
    factor: float,
) -> tuple[float, dict[str, Values]]:
    """Entries that are chosen or valued by what the layers compute on prompts; with them their μ.

    Args:
        calibration: its models hold the fine-tune and the backbone, and do so afterwards.
        batches: the task's prompts with the fine-tune's continuations.
        teacher: the fine-tune's `targets` on them.
        fine_tune: θ_k.
        sources: base, stored backbone and settings.
        dense: the expert's 1-D deltas.
        factor: μ for `rescaled` values that are not `calibrated`.
    """
    student = calibration.student
    candidates = FACTORS if sources.config.rescale == "calibrated" else (factor,)
    found: list[tuple[float, float, dict[str, Values]]] = []
    for candidate in candidates:
        with placed(student, dense):
            sparse = dict(_calibrated(calibration, batches, fine_tune, sources, candidate))
        assign(student, sources.backbone)
        distance = divergence(student, sparse | dict(dense), batches, teacher) if len(candidates) > 1 else 0.0
        found = [min([*found, (distance, candidate, sparse)], key=lambda item: item[0])]
    return found[0][1:]


def _vector(name: str, fine_tune: Checkpoint, sources: Sources) -> Tensor:
    """What entries are selected from: the task vector, or what the backbone lacks."""
    return difference(fine_tune, sources.backbone if sources.config.selection == "residual" else sources.base, name)


def _ranking(name: str, fine_tune: Checkpoint, sources: Sources, vector: Tensor) -> Tensor:
    """What entries are ranked by: the vector, without the errors of rounding a backbone to few bits."""
    return sources.learned(fine_tune, name) if sources.config.selection == "residual" else vector


def _data_free(name: str, fine_tune: Checkpoint, sources: Sources, factor: float) -> Values:
    vector = _vector(name, fine_tune, sources)
    index = largest_entries(_ranking(name, fine_tune, sources, vector), sources.entries(vector.shape[1]))
    value = _closed_form(name, vector, index, sources, factor)
    return Values(index, as_stored(value, sources.config.storage))


def _closed_form(name: str, vector: Tensor, index: Tensor, sources: Sources, factor: float) -> Tensor:
    """Additive values of `exact` and `rescaled`; `replace` takes the backbone's own change of the entry back."""
    value = vector.gather(1, index)
    if sources.config.values == "rescaled":
        value = value * factor
    if sources.config.overlap == "replace":
        value = value - difference(sources.backbone, sources.base, name).gather(1, index)
    return value


def _calibrated(
    calibration: Calibration, batches: Sequence[Batch], fine_tune: Checkpoint, sources: Sources, factor: float
) -> Iterator[tuple[str, Values]]:
    config, left = sources.config, set(sources.weights())
    if config.selection != "activation" and config.values != "least_squares":
        yield from ((key, _data_free(key, fine_tune, sources, factor)) for key in sorted(left))
        return
    parameters = dict(calibration.student.named_parameters())
    for key, moments in layer_moments(
        calibration.fine_tune, calibration.student, batches, sorted(left), calibration.folder
    ):
        left.discard(key)
        tuned, vector = fine_tune.tensor(key, torch.float32), _vector(key, fine_tune, sources)
        target = moments.target(tuned, sources.lacking(fine_tune, key))
        k = sources.entries(tuned.shape[1])
        if config.selection == "activation":
            index, value = greedy_support(target, moments.gram, k)
        else:
            index = largest_entries(_ranking(key, fine_tune, sources, vector), k)
            value = fit_values(target, moments.gram, index)
        if config.values != "least_squares":
            value = _closed_form(key, vector, index, sources, factor)
        value = as_stored(value, config.storage)
        parameters[key].scatter_add_(1, index, value)
        yield key, Values(index, value)
    for key in sorted(left):  # an embedding is looked up, not multiplied: it has no inputs to measure
        residual = sources.lacking(fine_tune, key)
        index = largest_entries(sources.learned(fine_tune, key), sources.entries(residual.shape[1]))
        yield key, Values(index, as_stored(residual.gather(1, index), config.storage))
