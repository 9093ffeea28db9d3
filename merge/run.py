"""From a recipe to a bundle."""

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from merge.backbone import write_backbone
from merge.bundle import BundleWriter, ManifestFields, backbone_digest, save_router
from merge.bundle.digest import file_digest
from merge.card import model_card
from merge.checkpoint import Checkpoint, check_compatible, open_checkpoint
from merge.experts import (
    ExpertConfig,
    ExpertReport,
    Job,
    Prompts,
    Sources,
    code_factor,
    load_tokenizer,
    paper_factors,
    read_prompts,
    run_jobs,
    task_magnitudes,
    usual_workers,
)
from merge.progress import Progress
from merge.recipe import Recipe, load_recipe
from merge.router import train_router

LIBRARIES = ("overtone", "torch", "transformers", "safetensors", "tokenizers")


@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote.

    Attributes:
        bundle: the bundle's directory.
        seconds: wall-clock time.
        backbone_bytes: of its tensors.
        experts: in the order of their names.
        router: whether there is one.
        notes: what the user should know.
    """

    bundle: Path
    seconds: float
    backbone_bytes: int
    experts: tuple[ExpertReport, ...]
    router: bool
    notes: tuple[str, ...]


def merge_recipe(
    recipe: Path, out: Path, overwrite: bool = False, progress: bool = True, workers: int | None = 1
) -> MergeReport:
    """Merge what a recipe describes into a bundle, which appears at `out` whole or not at all.

    Args:
        recipe: the YAML file.
        out: the bundle's directory.
        overwrite: replace a bundle that is there.
        progress: report on stderr.
        workers: experts cut at a time, each in a process of its own unless it is 1; None for as many as there are
            processors and room in memory for.

    Raises:
        ValueError: RecipeError, CheckpointError, CalibrationError or BundleError: one line that says what is wrong.
    """
    start = time.perf_counter()
    inputs = _Inputs.read(recipe)
    shown = Progress(progress)
    with BundleWriter(out, overwrite) as staging:
        _merge_backbone(inputs, staging.path / "backbone", shown)
        backbone = open_checkpoint(staging.path / "backbone")
        experts = _cut_experts(inputs, backbone, staging.path / "experts", shown, workers)
        if inputs.prompts is not None:
            shown.say("router: training")
            save_router(staging.path / "router", train_router(inputs.prompts, inputs.recipe.router))
        notes = _notes(inputs)
        (staging.path / "recipe.yml").write_bytes(recipe.read_bytes())
        (staging.path / "README.md").write_text(model_card(inputs.recipe, [_row(item) for item in experts], notes))
        shown.say("bundle: writing the manifest")
        staging.finish(
            ManifestFields(
                name=inputs.recipe.name,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                recipe_sha256=file_digest(recipe),
                inputs=inputs.digests(),
                versions={name: importlib.metadata.version(name) for name in LIBRARIES},
                notes=notes,
            )
        )
    seconds = time.perf_counter() - start
    return MergeReport(out, seconds, backbone.nbytes, tuple(experts), inputs.prompts is not None, notes)


@dataclass(frozen=True)
class _Inputs:
    """Everything a recipe names, opened and checked."""

    recipe: Recipe
    experts: ExpertConfig
    base: Checkpoint
    fine_tunes: Mapping[str, Checkpoint]
    prompts: Mapping[str, Sequence[str]] | None

    @classmethod
    def read(cls, path: Path) -> "_Inputs":
        recipe = load_recipe(path)
        base = open_checkpoint(recipe.base_model)
        fine_tunes = {
            entry.name: open_checkpoint(entry.model) for entry in sorted(recipe.models, key=lambda entry: entry.name)
        }
        check_compatible(base, list(fine_tunes.values()))
        calibration = recipe.calibration
        prompts = None if calibration is None else read_prompts(calibration.file, list(fine_tunes))
        return cls(recipe, recipe.experts.resolved(calibration is not None), base, fine_tunes, prompts)

    def digests(self) -> dict[str, dict[str, str]]:
        checkpoints = {"base": self.base, **{f"models/{name}": item for name, item in self.fine_tunes.items()}}
        return {
            name: {"path": str(item.path), "sha256": backbone_digest(item.path)} for name, item in checkpoints.items()
        }


def _merge_backbone(inputs: _Inputs, directory: Path, shown: Progress) -> None:
    recipe = inputs.recipe
    stage = f"backbone by {recipe.merge_method} of {len(inputs.fine_tunes)} models"
    with shown.stage(stage, len(inputs.base.tensors)) as advance:
        write_backbone(
            directory,
            inputs.base,
            inputs.fine_tunes,
            recipe.method(),
            dtype=getattr(torch, recipe.dtype),
            out_dtype=None if recipe.out_dtype is None else getattr(torch, recipe.out_dtype),
            on_tensor=advance,
        )


def _cut_experts(
    inputs: _Inputs, backbone: Checkpoint, directory: Path, shown: Progress, workers: int | None
) -> list[ExpertReport]:
    sources = Sources(inputs.base, backbone, backbone_digest(backbone.path), inputs.experts)
    factors = _factors(inputs, sources)
    prompts = _prompts(inputs)
    jobs = [
        Job(name, fine_tune, sources, prompts.get(name), factors.get(name, 1.0), directory / f"{name}.safetensors")
        for name, fine_tune in inputs.fine_tunes.items()
    ]
    reports = []
    with shown.stage("experts", len(jobs)) as advance:
        for report in run_jobs(jobs, workers or usual_workers(inputs.base, len(jobs))):
            shown.say(f"expert {report.name}: {_summary(report)}")
            reports.append(report)
            advance()
    return sorted(reports, key=lambda report: report.name)


def _factors(inputs: _Inputs, sources: Sources) -> dict[str, float]:
    rescale = inputs.experts.rescale
    if inputs.experts.values != "rescaled":
        return {}
    if isinstance(rescale, float):
        return dict.fromkeys(inputs.fine_tunes, rescale)
    magnitudes = {name: task_magnitudes(sources, item) for name, item in inputs.fine_tunes.items()}
    density = inputs.experts.density
    if rescale == "paper":
        return paper_factors(magnitudes, density)
    return {name: code_factor(item, density) for name, item in magnitudes.items()}


def _prompts(inputs: _Inputs) -> dict[str, Prompts]:
    settings, experts = inputs.recipe.calibration, inputs.experts
    needed = experts.selection == "activation" or experts.values == "least_squares" or experts.distill
    if settings is None or inputs.prompts is None or not needed:
        return {}
    tokenizer = load_tokenizer(inputs.base.path)
    return {
        name: Prompts(
            tuple(map(tuple, tokenizer(list(prompts[: settings.per_task]))["input_ids"])), settings.answer_tokens
        )
        for name, prompts in inputs.prompts.items()
    }


def _summary(report: ExpertReport) -> str:
    text = f"{report.density:.2%} of the entries, {report.share:.2%} of the backbone's bytes"
    if report.divergence is None:
        return text
    before, after = report.divergence
    return f"{text}, KL to the fine-tune {before:.3f} → {after:.4f}"


def _row(report: ExpertReport) -> dict[str, str]:
    row = {
        "expert": report.name,
        "entries kept": f"{report.density:.2%}",
        "bytes": f"{report.bytes:,}",
        "of the backbone's bytes": f"{report.share:.2%}",
    }
    if report.divergence is not None:
        row["KL to the fine-tune, backbone alone"] = f"{report.divergence[0]:.3f}"
        row["with the expert"] = f"{report.divergence[1]:.4f}"
    return row


def _notes(inputs: _Inputs) -> tuple[str, ...]:
    if inputs.prompts is None:
        return ("No calibration prompts: the experts are data-free and the bundle has no router.",)
    return ("KL is the mean over calibration tokens, which the experts were fitted to: measure on other prompts.",)
