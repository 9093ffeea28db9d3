"""One task's expert: which parameters get a residual, and how its parts are put together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil

import torch

from merge.bundle import Expert, LowRankDelta
from merge.checkpoint import Checkpoint
from merge.device import available_bytes
from merge.experts import sparse
from merge.experts.calibration import Batch, Watched, continue_greedily
from merge.experts.config import FACTORS
from merge.experts.distill import Settings, Target, distill, distillation_bytes, divergence, targets
from merge.experts.factored import Parts, choose_parts
from merge.experts.grams import Gram, input_grams
from merge.experts.layers import decoder_layers
from merge.experts.lora import keeps_base, lora_parts, rounded_parts, whole_directions, why_no_lora
from merge.experts.mapped import mapped
from merge.experts.packing import packed_batches
from merge.experts.placed import Product, Values
from merge.experts.refit import as_read, refit
from merge.experts.running import assign
from merge.experts.sources import Calibration, Cut, Sources
from merge.experts.storage import to_sparse
from merge.methods.vectors import row_blocks
from merge.task_vectors import is_unchanged

BATCH = 8
"""Sequences of a calibration batch, and so of a distillation step; 16 took half as long again and gained nothing."""

SCORED = 4
"""Batches, spread over all lengths, that divergences of experts with factors are measured on: 32 prompts."""


@dataclass(frozen=True)
class _Lesson:
    """What the fine-tune says to the task's prompts, and how far the backbone alone is from it.

    Attributes:
        batches, teacher: all of them; no teacher if nothing is distilled or chosen by divergence.
        scored, expected: those that the divergence is measured on.
        before: the backbone's divergence.
        empty: prompts to which the fine-tune replied with an end token alone.
    """

    batches: Sequence[Batch]
    teacher: Sequence[Target]
    scored: Sequence[Batch]
    expected: Sequence[Target]
    before: float
    empty: int


def cut_expert(
    name: str,
    fine_tune: Checkpoint,
    sources: Sources,
    calibration: Calibration | None = None,
    factor: float = 1.0,
    advance: Callable[[], None] = lambda: None,
) -> Cut:
    """Cut one task's expert.

    Memory: what `mapped` keeps of two decoders (for sparse experts one of them is in float32), and what `layer_moments`
    (sparse), `input_grams` (the others) and `distill` say.

    Args:
        name: the expert's name.
        fine_tune: θ_k.
        sources: base, stored backbone and settings.
        calibration: prompts and models to run them; for a configuration that `needs_prompts`.
        factor: μ for `rescaled` values that are not `calibrated`.
        advance: called about as often as `steps_of` says.

    Raises:
        ValueError: the configuration needs prompts and there are none, its budget is too small, or it asks for the
            fine-tune's LoRA and the expert cannot be that.
    """
    config = sources.config
    if calibration is None and config.needs_prompts:
        raise ValueError(f"expert {name!r} cannot be cut without calibration prompts as its settings ask")
    whole = cut_whole(name, fine_tune, sources, calibration is not None)
    if whole is not None:
        return whole
    dense = _dense(fine_tune, sources)
    room = _room(sources, dense)
    with ExitStack() as models:
        lesson = None if calibration is None else _lesson(name, calibration, fine_tune, sources, advance, models)
        if config.form == "sparse":
            return _sparse(name, fine_tune, sources, calibration, lesson, dense, factor)
        return _factored(name, fine_tune, sources, calibration, lesson, dense, room, advance)


def _sparse(
    name: str,
    fine_tune: Checkpoint,
    sources: Sources,
    calibration: Calibration | None,
    lesson: _Lesson | None,
    dense: dict[str, Values],
    factor: float,
) -> Cut:
    config = sources.config
    metadata = {"selection": str(config.selection), "values": str(config.values), "distill": str(config.distill)}
    if calibration is None or lesson is None:
        values = sparse.data_free(fine_tune, sources, factor)
        return Cut(_expert(name, sources, values, dense, {}, metadata, factor), None, _said(sources, factor))
    student, batches, teacher = calibration.student, lesson.batches, lesson.teacher
    factor, values = sparse.calibrated(calibration, batches, teacher, fine_tune, sources, dense, factor)
    both = values | dense
    if config.distill:
        distill(student, both, batches, teacher, Settings(config.distill, seed=config.seed, storage=config.storage))
    values, dense = {key: both[key] for key in values}, {key: both[key] for key in dense}
    after = divergence(student, both, batches, teacher)
    expert = _expert(name, sources, values, dense, {}, metadata, factor)
    return Cut(expert, (lesson.before, after), _said(sources, factor), lesson.empty)


def cut_whole(name: str, fine_tune: Checkpoint, sources: Sources, prompted: bool = False) -> Cut | None:
    """An expert that is its fine-tune's LoRA with all its directions; prompts could add nothing to it.

    `form: lora` keeps the factors as they are. `auto` does so if that fits into the budget, else it rounds them to
    the storage of experts if that fits. Over a backbone of 4 bits prompts do add something: distillation lets the
    LoRA's directions repair what rounding did to the task.

    Args:
        name: the expert's name.
        fine_tune: θ_k.
        sources: base, stored backbone and settings.
        prompted: whether there are calibration prompts.

    Returns:
        None if the expert must be cut in another way.

    Raises:
        ValueError: the configuration asks for the fine-tune's LoRA and the expert cannot be that.
    """
    config = sources.config
    if config.form not in {"auto", "lora"} or (prompted and _repairs(sources)):
        return None
    reason = why_no_lora(sources.base, fine_tune)
    lora = None if reason else lora_parts(fine_tune, sources)
    if config.form == "lora" and lora is None:
        reason = reason or "the backbone is not the base: use merge_method: base"
        raise ValueError(f"expert {name!r} cannot be the LoRA of its fine-tune unchanged: {reason}")
    if lora is None:
        return None
    dense = _dense(fine_tune, sources)
    room = _room(sources, dense)
    if config.form == "lora" or sum(item.nbytes for item in lora.values()) <= room:
        return Cut(_expert(name, sources, {}, dense, lora, {"form": "lora"}), None)
    rounded = rounded_parts(lora, config.storage, room)
    if rounded is None:
        return None
    metadata = {"form": "auto", "budget": f"{config.budget:.3%}", "selection": "whole", "distill": "0"}
    return Cut(_expert(name, sources, {}, dense, rounded, metadata), None)


def steps_of(sources: Sources, prompts: int) -> int:
    """About how often `cut_expert` calls `advance`: for each weight, and for each batch that a model runs.

    Args:
        sources: base, stored backbone and settings.
        prompts: calibration prompts; 0: none.
    """
    config, weights = sources.config, len(sources.weights())
    batches = ceil(prompts / BATCH)
    scored = batches if config.form == "sparse" else min(batches, SCORED)
    fixed = (batches if config.distill else scored) + 2 * scored + (config.distill or 0) * bool(prompts)
    # A layer has seven weights that read four tensors: the student runs for each tensor, the fine-tune for the layer.
    fitted = batches * (2 + 5 * weights // 7)
    if config.form != "sparse":
        return weights + fixed + 2 * batches + (fitted if config.selection == "activation" else 0)
    if not prompts:
        return 1
    return fixed + fitted * (len(FACTORS) if config.rescale == "calibrated" else 1)


def _factored(
    name: str,
    fine_tune: Checkpoint,
    sources: Sources,
    calibration: Calibration | None,
    lesson: _Lesson | None,
    dense: dict[str, Values],
    room: int,
    advance: Callable[[], None],
) -> Cut:
    config = sources.config
    metadata = {
        "form": str(config.form),
        "budget": f"{config.budget:.3%}",
        "selection": str(config.selection),
        "distill": str(config.distill),
    }
    if calibration is None or lesson is None:
        parts = choose_parts(fine_tune, sources, room, advance=advance)
        return Cut(_expert(name, sources, parts.values, dense, parts.rounded(sources), metadata), None)
    student, batches, teacher = calibration.student, lesson.batches, lesson.teacher
    own = _own_directions(fine_tune, sources, room) if _repairs(sources) else None
    if own is not None:
        parts = own
        metadata["selection"] = "distilled"
    else:
        parts = _chosen(fine_tune, sources, calibration, batches, dense, room, advance)
    both = parts.values | dense
    if config.distill:
        settings = Settings(config.distill, rate=FACTOR_RATE, seed=config.seed, storage=config.storage)
        distill(student, both, batches, teacher, settings, parts.products)
    parts = Parts({key: both[key] for key in parts.values}, parts.products)
    dense = {key: both[key] for key in dense}
    low_rank = parts.rounded(sources)
    # The numbers that a reader of the file gets.
    read = {key: as_read(item) for key, item in low_rank.items()}
    after = divergence(student, both, lesson.scored, lesson.expected, read)
    expert = _expert(name, sources, parts.values, dense, low_rank, metadata)
    return Cut(expert, (lesson.before, after), None, lesson.empty)


def _chosen(
    fine_tune: Checkpoint,
    sources: Sources,
    calibration: Calibration,
    batches: Sequence[Batch],
    dense: dict[str, Values],
    room: int,
    advance: Callable[[], None],
) -> Parts:
    """The chosen parts, fitted to the inputs of the layers if the configuration requires it."""
    activation = sources.config.selection == "activation"
    changed = [key for key in sources.weights() if activation and _differs(fine_tune, sources, key)]

    def grams() -> Iterable[Gram]:
        return input_grams(calibration.fine_tune, batches, changed, calibration.folder) if changed else ()

    parts = choose_parts(fine_tune, sources, room, grams, advance)
    return refit(calibration, batches, fine_tune, sources, parts, dense) if activation else parts


def _differs(fine_tune: Checkpoint, sources: Sources, name: str) -> bool:
    """Whether the stored backbone lacks anything of a weight; of most weights that do the first rows say it."""
    if is_unchanged(name, sources.base, fine_tune):
        return not keeps_base(sources.backbone, sources, name)
    return any(
        not torch.equal(
            fine_tune.tensor(name, torch.float32, rows=rows), sources.backbone.tensor(name, torch.float32, rows=rows)
        )
        for rows in row_blocks(sources.base.tensors[name].shape)
    )


def _repairs(sources: Sources) -> bool:
    """Whether a LoRA's own directions are distilled over a backbone of 4 bits.

    Parts that are fitted layer by layer to the errors of rounding, in place of the LoRA's directions, were worse.
    """
    return sources.is_coarse and sources.config.form == "auto" and bool(sources.config.distill)


def _own_directions(fine_tune: Checkpoint, sources: Sources, room: int) -> Parts | None:
    """The LoRA's directions, unchanged; None if the fine-tune has none that fit."""
    lora = lora_parts(fine_tune, sources)
    whole = None if lora is None else whole_directions(lora, sources.config.storage, room)
    return None if whole is None else Parts({}, {name: Product(best.b, best.a) for name, best in whole.items()})


FACTOR_RATE = 3e-4
"""Adam's learning rate of norms and entries beside factors."""


def _room(sources: Sources, dense: Mapping[str, Values]) -> int:
    """Bytes of the budget that the 2-D weights may take; 0 if the configuration has none."""
    return 0 if sources.config.budget is None else sources.room(sum(item.value.nbytes for item in dense.values()))


def _dense(fine_tune: Checkpoint, sources: Sources) -> dict[str, Values]:
    """The 1-D deltas; beside factors, only those of parameters that changed."""
    if not sources.config.dense_1d:
        return {}
    found = {key: Values(None, sources.lacking(fine_tune, key)) for key in sources.vectors()}
    if sources.config.form == "sparse":
        return found
    return {key: item for key, item in found.items() if bool(item.value.any())}


def _lesson(
    name: str,
    calibration: Calibration,
    fine_tune: Checkpoint,
    sources: Sources,
    advance: Callable[[], None],
    models: ExitStack,
) -> _Lesson:
    tuned, student = calibration.fine_tune, calibration.student
    models.enter_context(mapped(tuned, fine_tune))
    replies = calibration.replies
    if replies is None:
        replies = continue_greedily(tuned, calibration.prompts, calibration.answer_tokens, calibration.ends)
    batches = Watched(packed_batches(tuned, calibration.prompts, replies, BATCH), advance)
    every = 1 if sources.config.form == "sparse" else ceil(len(batches) / SCORED)
    scored = Watched(batches[::every], advance)
    if sources.config.distill:
        _check_distillation(name, calibration, batches, sources)
    folder = calibration.folder
    teacher = targets(tuned, batches, folder) if every == 1 or sources.config.distill else []
    expected = teacher[::every] or targets(tuned, scored, folder)
    if sources.config.form == "sparse":  # such experts are fitted by putting values into the student's weights
        assign(student, sources.backbone)
    else:
        models.enter_context(mapped(student, sources.backbone))
    before = divergence(student, {}, scored, expected)
    return _Lesson(batches, teacher, scored, expected, before, sum(set(reply) <= calibration.ends for reply in replies))


def _check_distillation(name: str, calibration: Calibration, batches: Sequence[Batch], sources: Sources) -> None:
    """Refuse a distillation that memory has no room for, before hours of work.

    Raises:
        ValueError: it takes more than what is free.
    """
    config, model = sources.config, calibration.student
    shapes = [sources.base.tensors[weight].shape for weight in sources.weights()]
    if config.form == "sparse":
        numbers = sum(shape[0] * sources.entries(shape[1]) for shape in shapes)
    else:
        numbers = _room(sources, {}) // (1 if config.storage == "int8" else 2)
    needed = distillation_bytes(model.config, len(decoder_layers(model)), batches, numbers)
    free = available_bytes(sources.base.device)
    if needed > free:
        raise ValueError(
            f"distillation of expert {name!r} takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free: set experts.distill to 0, or use shorter prompts, fewer calibration.answer_tokens or fewer --workers"
        )


def _said(sources: Sources, factor: float) -> float | None:
    return factor if sources.config.values == "rescaled" else None


def _expert(
    name: str,
    sources: Sources,
    values: Mapping[str, Values],
    dense: Mapping[str, Values],
    low_rank: Mapping[str, LowRankDelta],
    metadata: dict[str, str],
    factor: float = 1.0,
) -> Expert:
    config = sources.config
    if not (values or dense or low_rank):  # the backbone is the fine-tune, and a file must hold something
        dense = {key: Values(None, torch.zeros(sources.base.tensors[key].shape)) for key in sources.vectors()[:1]}
    if config.values == "rescaled":
        metadata["factor"] = f"{factor:.4g}"
    if config.storage != "bf16" and metadata.get("form") != "lora":
        metadata["storage"] = config.storage
    return Expert(
        name=name,
        backbone_digest=sources.backbone_digest,
        density=sources.density if config.form == "sparse" else 0.0,
        sparse={
            key: to_sparse(item.index.cpu(), item.value.cpu(), sources.base.tensors[key].shape[1], config.storage)
            for key, item in values.items()
            if item.index is not None
        },
        dense={key: item.value.to("cpu", torch.float32) for key, item in dense.items()},
        metadata=metadata,
        low_rank={key: LowRankDelta(part.a.cpu(), part.b.cpu(), part.scale.cpu()) for key, part in low_rank.items()},
    )
