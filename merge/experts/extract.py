"""One task's expert: which parameters get a residual, and how its parts are put together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from transformers import PreTrainedModel

from merge.bundle import Expert
from merge.checkpoint import Checkpoint
from merge.experts.activation import fit_values, greedy_support
from merge.experts.calibration import Batch, continue_greedily, make_batches
from merge.experts.config import FACTORS, ExpertConfig
from merge.experts.distill import Settings, Values, distill, divergence, placed, targets
from merge.experts.fit import layer_moments
from merge.experts.magnitude import Magnitudes, code_factor, largest_entries, measure, paper_factors
from merge.experts.running import assign
from merge.experts.storage import as_stored, to_sparse

BATCH = 8
"""Sequences of a calibration batch, and so of a distillation step; 16 took half as long again and gained nothing."""


@dataclass(frozen=True)
class Sources:
    """What an expert is cut from.

    Attributes:
        base: θ₀.
        backbone: θ_m as it is stored.
        backbone_digest: digest of its files.
        config: resolved.
    """

    base: Checkpoint
    backbone: Checkpoint
    backbone_digest: str
    config: ExpertConfig

    def weights(self) -> list[str]:
        """Names of the 2-D weights that get a sparse residual, sorted."""
        include, exclude = self.config.include, self.config.exclude
        return [
            name
            for name, info in sorted(self.base.tensors.items())
            if len(info.shape) == 2
            and any(fnmatchcase(name, pattern) for pattern in include)
            and not any(fnmatchcase(name, pattern) for pattern in exclude)
        ]

    def vectors(self) -> list[str]:
        """Names of the 1-D parameters that get a dense residual, sorted."""
        return [name for name, info in sorted(self.base.tensors.items()) if len(info.shape) == 1]

    def entries(self, columns: int) -> int:
        """Entries kept of a row: max(1, round(density · columns)), so the true density is k / columns."""
        return max(1, round(self.config.density * columns))


@dataclass(frozen=True)
class Calibration:
    """How the prompts of a task are run.

    Attributes:
        fine_tune, student: two decoders whose weights are free to be exchanged.
        prompts: token ids.
        ends: token ids that end a reply.
        answer_tokens: most tokens of a reply.
    """

    fine_tune: PreTrainedModel
    student: PreTrainedModel
    prompts: Sequence[Sequence[int]]
    ends: frozenset[int]
    answer_tokens: int


@dataclass(frozen=True)
class Cut:
    """An expert, and how far backbone + expert is from the fine-tune.

    Attributes:
        expert: what to store.
        divergence: mean KL in nats a predicted token on the calibration prompts: of the backbone alone, and with the
            expert as stored; None without calibration.
        factor: μ; None for values that are not `rescaled`.
        empty: calibration prompts to which the fine-tune replied with an end token alone.
    """

    expert: Expert
    divergence: tuple[float, float] | None
    factor: float | None = None
    empty: int = 0


def task_magnitudes(sources: Sources, fine_tune: Checkpoint) -> Magnitudes:
    """What the closed forms of μ need of one fine-tune."""
    names = sources.weights()
    columns = {sources.base.tensors[name].shape[1] for name in names}
    vectors = (_vector(name, fine_tune, sources) for name in names)
    return measure(vectors, {width: sources.entries(width) for width in columns})


def expert_factors(sources: Sources, fine_tunes: Mapping[str, Checkpoint]) -> dict[str, float]:
    """μ of each task, where it is a number or a closed form.

    Returns:
        By name; empty for a configuration without `rescaled` values, or with `calibrated` ones.
    """
    rescale, density = sources.config.rescale, sources.config.density
    if sources.config.values != "rescaled" or rescale == "calibrated":
        return {}
    if isinstance(rescale, float):
        return dict.fromkeys(fine_tunes, rescale)
    if rescale == "nearest":
        return {name: nearest_factor(sources, item) for name, item in fine_tunes.items()}
    magnitudes = {name: task_magnitudes(sources, item) for name, item in fine_tunes.items()}
    if rescale == "paper":
        return paper_factors(magnitudes, density)
    return {name: code_factor(item, density) for name, item in magnitudes.items()}


def nearest_factor(sources: Sources, fine_tune: Checkpoint) -> float:
    """The μ with which backbone + expert comes nearest to the fine-tune: never farther from it than the backbone is.

    Semantics: argmin_μ ‖θ_k − θ_m − μ S(τ)‖² = ⟨θ_k − θ_m, S(τ)⟩ / ‖S(τ)‖², S what keeps the selected entries, over all
    weights. It is 1 where the kept entries replace the backbone's, or are selected from θ_k − θ_m itself.
    """
    if sources.config.selection == "residual" or sources.config.overlap == "replace":
        return 1.0
    product = size = 0.0
    for name in sources.weights():
        vector, lacking = _vector(name, fine_tune, sources), _difference(fine_tune, sources.backbone, name)
        index = largest_entries(vector, sources.entries(vector.shape[1]))
        kept = vector.gather(1, index).double()
        product += float((kept * lacking.gather(1, index)).sum())
        size += float(kept.square().sum())
    return product / size if size else 1.0


def cut_expert(
    name: str, fine_tune: Checkpoint, sources: Sources, calibration: Calibration | None = None, factor: float = 1.0
) -> Cut:
    """Cut one task's expert.

    Memory: two decoders in float32, and what `layer_moments` and `distill` say.

    Args:
        name: the expert's name.
        fine_tune: θ_k.
        sources: base, stored backbone and settings.
        calibration: prompts and models to run them; for a configuration that `needs_prompts`.
        factor: μ for `rescaled` values that are not `calibrated`.

    Raises:
        ValueError: the configuration needs prompts and there are none.
    """
    if calibration is None and sources.config.needs_prompts:
        raise ValueError(f"expert {name!r} cannot be cut without calibration prompts as its settings ask")
    dense = {
        key: Values(None, _difference(fine_tune, sources.backbone, key))
        for key in (sources.vectors() if sources.config.dense_1d else [])
    }
    if calibration is None:
        sparse = {key: _data_free(key, fine_tune, sources, factor) for key in sources.weights()}
        return Cut(_expert(name, sources, sparse, dense, factor), None, _said(sources, factor))

    tuned, student = calibration.fine_tune, calibration.student
    assign(tuned, fine_tune)
    replies = continue_greedily(tuned, calibration.prompts, calibration.answer_tokens, calibration.ends)
    batches = make_batches(calibration.prompts, replies, BATCH)
    teacher = targets(tuned, batches)
    assign(student, sources.backbone)
    before = divergence(student, {}, batches, teacher)
    candidates = FACTORS if sources.config.rescale == "calibrated" else (factor,)
    found: list[tuple[float, float, dict[str, Values]]] = []
    for candidate in candidates:
        with placed(student, dense):
            sparse = dict(_calibrated(calibration, batches, fine_tune, sources, candidate))
        assign(student, sources.backbone)
        distance = divergence(student, sparse | dense, batches, teacher) if len(candidates) > 1 else 0.0
        found = [min([*found, (distance, candidate, sparse)], key=lambda item: item[0])]
    _, factor, sparse = found[0]
    values = sparse | dense
    steps = sources.config.distill
    if steps:
        settings = Settings(steps, seed=sources.config.seed, storage=sources.config.storage)
        distill(student, values, batches, teacher, settings)
    expert = _expert(name, sources, {key: values[key] for key in sparse}, {key: values[key] for key in dense}, factor)
    empty = sum(set(reply) <= calibration.ends for reply in replies)
    return Cut(expert, (before, divergence(student, values, batches, teacher)), _said(sources, factor), empty)


def _said(sources: Sources, factor: float) -> float | None:
    return factor if sources.config.values == "rescaled" else None


def _difference(minuend: Checkpoint, subtrahend: Checkpoint, name: str) -> Tensor:
    return minuend.tensor(name, torch.float32) - subtrahend.tensor(name, torch.float32)


def _vector(name: str, fine_tune: Checkpoint, sources: Sources) -> Tensor:
    """What entries are selected from: the task vector, or what the backbone lacks."""
    return _difference(fine_tune, sources.backbone if sources.config.selection == "residual" else sources.base, name)


def _data_free(name: str, fine_tune: Checkpoint, sources: Sources, factor: float) -> Values:
    vector = _vector(name, fine_tune, sources)
    index = largest_entries(vector, sources.entries(vector.shape[1]))
    value = _closed_form(name, vector, index, sources, factor)
    return Values(index, as_stored(value, sources.config.storage))


def _closed_form(name: str, vector: Tensor, index: Tensor, sources: Sources, factor: float) -> Tensor:
    """Additive values of `exact` and `rescaled`; `replace` takes the backbone's own change of the entry back."""
    value = vector.gather(1, index)
    if sources.config.values == "rescaled":
        value = value * factor
    if sources.config.overlap == "replace":
        value = value - _difference(sources.backbone, sources.base, name).gather(1, index)
    return value


def _calibrated(
    calibration: Calibration, batches: Sequence[Batch], fine_tune: Checkpoint, sources: Sources, factor: float
) -> Iterator[tuple[str, Values]]:
    config, left = sources.config, set(sources.weights())
    if config.selection != "activation" and config.values != "least_squares":
        yield from ((key, _data_free(key, fine_tune, sources, factor)) for key in sorted(left))
        return
    parameters = dict(calibration.student.named_parameters())
    for key, moments in layer_moments(calibration.fine_tune, calibration.student, batches, sorted(left)):
        left.discard(key)
        tuned, vector = fine_tune.tensor(key, torch.float32), _vector(key, fine_tune, sources)
        target = moments.target(tuned, sources.backbone.tensor(key, torch.float32))
        k = sources.entries(tuned.shape[1])
        if config.selection == "activation":
            index, value = greedy_support(target, moments.gram, k)
        else:
            index = largest_entries(vector, k)
            value = fit_values(target, moments.gram, index)
        if config.values != "least_squares":
            value = _closed_form(key, vector, index, sources, factor)
        value = as_stored(value, config.storage)
        parameters[key].scatter_add_(1, index, value)
        yield key, Values(index, value)
    for key in sorted(left):  # an embedding is looked up, not multiplied: it has no inputs to measure
        residual = _difference(fine_tune, sources.backbone, key)
        index = largest_entries(residual, sources.entries(residual.shape[1]))
        yield key, Values(index, as_stored(residual.gather(1, index), config.storage))


def _expert(
    name: str, sources: Sources, sparse: Mapping[str, Values], dense: Mapping[str, Values], factor: float
) -> Expert:
    config = sources.config
    metadata = {"selection": str(config.selection), "values": str(config.values), "distill": str(config.distill)}
    if config.values == "rescaled":
        metadata["factor"] = f"{factor:.4g}"
    if config.storage != "bf16":
        metadata["storage"] = config.storage
    return Expert(
        name=name,
        backbone_digest=sources.backbone_digest,
        density=config.density,
        sparse={
            key: to_sparse(item.index, item.value, sources.base.tensors[key].shape[1], config.storage)
            for key, item in sparse.items()
            if item.index is not None
        },
        dense={key: item.value.float() for key, item in dense.items()},
        metadata=metadata,
    )
