"""From a recipe to a bundle."""

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from merge.backbone import write_backbone
from merge.bundle import ManifestFields, backbone_digest, open_bundle, save_router
from merge.bundle.digest import file_digest
from merge.card import model_card
from merge.check import Finding, Inputs, checked_inputs
from merge.check.elsewhere import Elsewhere
from merge.check.general import plain_text, too_large
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.device import DeviceError, find_device
from merge.experts import (
    ExpertReport,
    Job,
    Prompts,
    Sources,
    concerns,
    expert_factors,
    run_jobs,
    usual_workers,
)
from merge.experts.running import build_model, end_tokens, load_tokenizer
from merge.frank_wolfe import FrankWolfeConfig, Step, language_model_loss, merge_frank_wolfe
from merge.guard import Abilities, base_abilities, elsewhere_notes, experts_elsewhere, general_notes
from merge.methods import BoundMethod
from merge.progress import Progress
from merge.quantised_backbone import fitted_to_inputs, greedy_replies, write_quantised
from merge.ray_pool import RayPool
from merge.router import read_foreign, train_router
from merge.scale import ScaleChoice, ScalePoint, choose_scale
from merge.stages import Stages
from merge.staging import FLOATS, Staging
from merge.wording import counted

Replies = Mapping[str, Sequence[Sequence[int]]]
"""By task: token ids of the fine-tune's reply to each of its calibration prompts; empty: not computed."""

LIBRARIES = ("overtone", "torch", "scikit-learn", "transformers", "safetensors", "tokenizers")


@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote.

    Attributes:
        bundle: the bundle's directory.
        seconds: wall-clock time.
        backbone_bytes: size of the backbone's tensors, unquantised.
        stored_bytes: size of its files.
        experts: in the order of their names.
        router: whether there is one.
        notes: what the user should know.
        scale: the λ that `lambda: auto` chose; None: there was nothing to choose, or it could not be.
        elsewhere: what each expert does to requests that are not its task's; empty if that was not measured.
        stages: seconds of the stages, which follow one another.
    """

    bundle: Path
    seconds: float
    backbone_bytes: int
    stored_bytes: int
    experts: tuple[ExpertReport, ...]
    router: bool
    notes: tuple[str, ...]
    scale: ScaleChoice | None = None
    elsewhere: Mapping[str, Elsewhere] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)


def merge_recipe(
    recipe: Path,
    out: Path,
    overwrite: bool = False,
    progress: bool = True,
    workers: int | None = 1,
    resume: bool = False,
    ray: bool = False,
    device: str = "auto",
) -> MergeReport:
    """Merge what a recipe describes into a bundle, which appears at `out` whole or not at all.

    The same recipe and inputs give the same bytes on the same kind of device, in one go or resumed.

    Args:
        recipe: the YAML file.
        out: the bundle's directory.
        overwrite: replace a bundle that is there.
        progress: report on stderr.
        workers: tensors merged at a time, by threads, and experts cut at a time, each in a separate process unless
            it is 1; None for as many as there are processors and room in memory for.
        resume: continue from the finished parts that a killed merge of the same recipe and inputs left behind.
        ray: merge tensors and cut experts as Ray tasks, in place of threads and processes; the extra `ray`.
        device: the device of methods, decompositions and models, as `find_device` takes it. Ray's workers compute on
            processors.

    Raises:
        CheckError: what `overtone check` finds wrong without reading weights, all of it.
        ValueError: CheckpointError, BundleError or DeviceError: one line that says what turned out to be wrong on the
            way.
    """
    start = time.perf_counter()
    place = find_device("cpu" if ray and device == "auto" else device)
    if ray and place.type != "cpu":
        raise DeviceError(f"--ray computes on processors, and device is {device!r}: leave one of them out")
    shown, stages = Progress(progress), Stages()
    with stages.measured("inputs"):
        inputs, warned = checked_inputs(recipe, out, overwrite)
        for finding in warned:
            shown.say(str(finding))
        inputs = inputs.on(place)
        versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        if place.type != "cpu":
            shown.say(f"computing on {place} ({torch.cuda.get_device_name(place)})")
            versions["device"] = place.type
        shown.say("inputs: computing their digests")
        digests = inputs.digests()
    with (
        Staging(out, overwrite, inputs.key(recipe, digests, versions), resume) as staging,
        RayPool() if ray else nullcontext() as pool,
    ):
        with stages.measured("backbone"):
            abilities = base_abilities(inputs, shown)
            scale, replies = _merge_backbone(inputs, abilities, staging, shown, workers, pool)
            backbone = open_checkpoint(staging.path / "backbone").on(place)
            general = [*_scale_notes(inputs, abilities, scale), *general_notes(abilities.reference, backbone, shown)]
            abilities = abilities.shortened()
        with stages.measured("experts"):
            experts = _cut_experts(inputs, backbone, replies, staging, shown, workers, pool)
            elsewhere = experts_elsewhere(inputs, abilities, backbone, staging.path / "experts", shown)
        with stages.measured("router"):
            _train_router(inputs, staging, shown)
        notes = (*_notes(inputs, warned, experts), *elsewhere_notes(elsewhere), *general)
        (staging.path / "recipe.yml").write_bytes(recipe.read_bytes())
        (staging.path / "README.md").write_text(
            model_card(inputs.recipe, [_row(item, elsewhere.get(item.name)) for item in experts], notes)
        )
        shown.say("bundle: writing the manifest")
        with stages.measured("bundle"):
            staging.finish(
                ManifestFields(
                    name=inputs.recipe.name,
                    recipe_sha256=file_digest(recipe),
                    inputs=digests,
                    versions=versions,
                    notes=notes,
                )
            )
    seconds = time.perf_counter() - start
    return MergeReport(
        bundle=out,
        seconds=seconds,
        backbone_bytes=backbone.nbytes,
        stored_bytes=open_bundle(out).manifest.backbone_bytes,
        experts=tuple(experts),
        router=inputs.prompts is not None,
        notes=notes,
        scale=scale,
        elsewhere=elsewhere,
        stages=stages.seconds,
    )


def _train_router(inputs: Inputs, staging: Staging, shown: Progress) -> None:
    if inputs.prompts is None:
        return
    config = inputs.recipe.router
    shown.say(f"router: training on {' and '.join(config.chosen_features)} features")
    foreign = [] if config.foreign is None else read_foreign(config.foreign)
    save_router(staging.path / "router", train_router(inputs.prompts, config, foreign, staging.path / "backbone"))


def _merge_backbone(
    inputs: Inputs,
    abilities: Abilities,
    staging: Staging,
    shown: Progress,
    workers: int | None,
    pool: RayPool | None,
) -> tuple[ScaleChoice | None, Replies]:
    """Merge and store the backbone; with λ's choice come the replies that it was fitted to, which experts need too."""
    recipe = inputs.recipe
    finished = staging.finished("backbone")
    if finished is not None:
        shown.say("backbone: reused from the interrupted merge")
        return _restored_scale(finished["scale"]), finished["replies"]
    merged = inputs.merged()
    frank_wolfe = recipe.frank_wolfe()
    scale = None
    if recipe.chooses_scale and abilities.reference is not None:
        scale = choose_scale(inputs, abilities.reference, shown, workers, staging.path)
        shown.say(scale.summary())
    if frank_wolfe is not None:
        method = _searched(inputs, merged, frank_wolfe, shown)
    else:
        method = recipe.method() if scale is None else recipe.method(scale.multiple)
    stage = f"merging the tensors of {counted(len(inputs.fine_tunes), 'model')} (method {recipe.merge_method})"
    directory = staging.path / "backbone"
    rounds = recipe.quantisation is not None
    floats = staging.path / FLOATS
    replies: Replies = {}
    if rounds:
        floats.mkdir()
    with shown.stage(stage, len(inputs.base.tensors) + len(inputs.base.buffers)) as advance:
        write_backbone(
            floats if rounds else directory,
            inputs.base,
            inputs.fine_tunes,
            method,
            dtype=getattr(torch, recipe.dtype),
            out_dtype=torch.float32 if rounds else recipe.stored_dtype,
            on_tensor=advance,
            merged=merged.tensors,
            by_rows=recipe.by_rows,
            shard_bytes=recipe.out_shard_size,
            threads=workers,
            pool=pool,
        )
        if recipe.quantisation is not None:
            shown.say(f"backbone: rounding to {recipe.quantisation}")
            dtype = recipe.stored_dtype or inputs.base.usual_dtype
            stored = open_checkpoint(floats).on(inputs.base.device)
            replies = _round_backbone(inputs, stored, directory, recipe.quantisation, dtype)
    data = {"scale": None if scale is None else asdict(scale), "replies": replies}
    files = [file for folder in (directory, floats) for file in folder.rglob("*") if file.is_file()]
    staging.record("backbone", files, data)
    return scale, replies


def _round_backbone(inputs: Inputs, floats: Checkpoint, directory: Path, storage: str, dtype: torch.dtype) -> Replies:
    """Round the merge; to 4 bits by what its layers read on plain text and on the tasks' prompts with their replies.

    Returns:
        The replies.
    """
    fitted = None
    replies: Replies = {}
    if storage == "int4" and inputs.recipe.calibration is not None and not too_large(inputs.base):
        prompts, _ = inputs.calibration_tokens()
        replies = _replies(inputs, prompts, inputs.recipe.calibration.answer_tokens)
        read = [
            [*prompt, *reply]
            for task, answered in replies.items()
            for prompt, reply in zip(prompts[task], answered, strict=True)
        ]
        if read:
            fitted = fitted_to_inputs(floats, storage, [*plain_text(inputs.base), *read])
    write_quantised(directory, floats, storage, dtype, inputs.recipe.out_shard_size, fitted)
    return replies


def _replies(inputs: Inputs, prompts: Mapping[str, list[list[int]]], limit: int) -> dict[str, list[list[int]]]:
    """Each fine-tune's replies to its task's calibration prompts."""
    usual = end_tokens(build_model(inputs.base.path, empty=True), load_tokenizer(inputs.base.path))
    found = {}
    for task, asked in prompts.items():
        own = inputs.own_settings[task].end_tokens
        ends = usual if own is None else frozenset(own)
        found[task] = greedy_replies(inputs.base, inputs.fine_tunes[task], asked, limit, ends)
    return found


def _restored_scale(data: Mapping[str, Any] | None) -> ScaleChoice | None:
    if data is None:
        return None
    return ScaleChoice(data["multiple"], data["scale"], tuple(ScalePoint(**point) for point in data["curve"]))


def _scale_notes(inputs: Inputs, abilities: Abilities, scale: ScaleChoice | None) -> list[str]:
    """The report on `lambda: auto`."""
    if not inputs.recipe.chooses_scale:
        return []
    if scale is not None:
        return [scale.summary()]
    return [
        f"lambda is the method's usual {inputs.recipe.usual_scale:g}: auto cannot choose it, as {abilities.missing}"
    ]


def _searched(inputs: Inputs, merged: Checkpoint, config: FrankWolfeConfig, shown: Progress) -> BoundMethod:
    """Run Frank-Wolfe; the method that it gives only hands the tensors out."""
    calibration = inputs.recipe.calibration
    assert calibration is not None  # the recipe's own check
    with shown.stage("frank_wolfe", config.steps) as advance:

        def told(step: Step) -> None:
            chosen = ", ".join(sorted(step.chosen)) or "nothing"
            shown.say(f"step {step.number}: loss {step.loss:.4f}, gap {step.gap:.4f}, towards {chosen}")
            advance()

        loss = language_model_loss(inputs.base, inputs.fine_tunes, calibration, config.objective)
        outcome = merge_frank_wolfe(merged, inputs.fine_tunes, loss, config, told)
    shares = sorted(outcome.shares().items(), key=lambda item: -item[1])
    shown.say("coefficients: " + ", ".join(f"{name} {share:.3f}" for name, share in shares if share > 0))
    return outcome.method


def _cut_experts(
    inputs: Inputs,
    backbone: Checkpoint,
    replies: Replies,
    staging: Staging,
    shown: Progress,
    workers: int | None,
    pool: RayPool | None,
) -> list[ExpertReport]:
    floats = open_checkpoint(staging.path / FLOATS).on(backbone.device) if inputs.recipe.quantisation else None
    sources = Sources(
        inputs.merged(),
        backbone,
        backbone_digest(backbone.path, staging.digests.of),
        inputs.experts,
        floats,
        tuple(inputs.fine_tunes.values()),
    )
    reports = [
        _restored(finished)
        for name in inputs.fine_tunes
        if (finished := staging.finished(f"experts/{name}")) is not None
    ]
    for report in reports:
        shown.say(f"expert {report.name}: reused from the interrupted merge")
    wanted = {name: item for name, item in inputs.fine_tunes.items() if name not in {item.name for item in reports}}
    factors = expert_factors(sources, inputs.fine_tunes) if wanted else {}
    prompts = _prompts(inputs, replies) if wanted else {}
    directory = staging.path / "experts"
    jobs = [
        Job(
            name,
            fine_tune,
            sources,
            prompts.get(name),
            factors.get(name, 1.0),
            directory / f"{name}.safetensors",
            shown.enabled,
            inputs.own_settings[name],
        )
        for name, fine_tune in wanted.items()
    ]
    with shown.stage("experts", len(jobs)) as advance:
        one_gpu = backbone.device.type != "cpu"
        width = workers or (1 if one_gpu else usual_workers(inputs.job_bytes(), len(jobs)))
        for report in run_jobs(jobs, width, pool):
            staging.record(f"experts/{report.name}", [directory / f"{report.name}.safetensors"], asdict(report))
            shown.say(f"expert {report.name}: {_summary(report)}")
            for concern in concerns(report):
                shown.say(f"warning: expert {report.name}: {concern}")
            reports.append(report)
            advance()
    return sorted(reports, key=lambda report: report.name)


def _restored(data: Mapping[str, Any]) -> ExpertReport:
    """A report as it was before JSON made its tuples lists."""
    tuples = {key: None if data[key] is None else tuple(data[key]) for key in ("divergence", "ranks")}
    return ExpertReport(**{**data, **tuples})


def _prompts(inputs: Inputs, replies: Replies) -> dict[str, Prompts]:
    settings = inputs.recipe.calibration
    if settings is None or not inputs.experts.needs_prompts:
        return {}
    tokens, _ = inputs.calibration_tokens()
    return {
        name: Prompts(tuple(map(tuple, items)), settings.answer_tokens, replies.get(name))
        for name, items in tokens.items()
    }


def _summary(report: ExpertReport) -> str:
    text = f"{report.parts}, {report.share:.2%} of the backbone's bytes"
    if report.factor is not None:
        text += f", μ {report.factor:.3g}"
    if report.divergence is None:
        return text
    before, after = report.divergence
    return f"{text}, KL to the fine-tune {before:.3f} → {after:.4f}"


def _row(report: ExpertReport, elsewhere: Elsewhere | None) -> dict[str, str]:
    row = {
        "expert": report.name,
        "holds": report.parts,
        "bytes": f"{report.bytes:,}",
        "of the backbone's bytes": f"{report.share:.2%}",
    }
    if report.factor is not None:
        row["μ"] = f"{report.factor:.3g}"
    if report.divergence is not None:
        row["KL to the fine-tune, backbone alone"] = f"{report.divergence[0]:.3f}"
        row["with the expert"] = f"{report.divergence[1]:.4f}"
    if elsewhere is not None:
        row["KL to the base, general questions (fine-tune)"] = (
            f"{elsewhere.general:.3f} ({elsewhere.tuned_general:.3f})"
        )
        if elsewhere.others is not None:
            row["other tasks' prompts"] = f"{elsewhere.others:.3f} ({elsewhere.tuned_others:.3f})"
    return row


def _notes(inputs: Inputs, warned: tuple[Finding, ...], experts: Sequence[ExpertReport]) -> tuple[str, ...]:
    told = [f"{finding.subject}: {finding.message}" for finding in warned]
    told += [f"expert {report.name}: {concern}" for report in experts for concern in concerns(report)]
    if inputs.prompts is None:
        return ("No calibration prompts: the experts are data-free and the bundle has no router.", *told)
    if all(report.divergence is None for report in experts):
        return ("The experts are data-free: the calibration prompts trained the router alone.", *told)
    note = "KL is the mean over calibration tokens, which the experts were fitted to: measure on other prompts."
    return (note, *told)
