"""Putting the checks together."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from merge.bundle import SERVED_ARCHITECTURES
from merge.check.cost import Cost, measured_cost
from merge.check.finding import CheckError, Finding, errors, unreadable, warnings
from merge.check.generation import check_generation, compare_generation
from merge.check.inputs import Inputs, open_base, open_examples, open_fine_tunes
from merge.check.place import check_memory, check_room, check_target
from merge.check.router import check_router
from merge.check.settings import compare_settings
from merge.check.tensors import compare_adapted, compare_tensors
from merge.check.tokenizers import compare_tokenizers
from merge.check.weights import Lineage, check_weights, sample_weights
from merge.checkpoint import Checkpoint, CheckpointError
from merge.experts import CalibrationError, check_runs, foreseen, why_no_lora
from merge.lora import AdaptedCheckpoint
from merge.progress import Progress
from merge.recipe import Recipe, RecipeError, load_recipe
from merge.recipe.parameters import layer_count


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        recipe: the file.
        findings: errors first.
        lineages: of each fine-tune; empty if the weights were not read, or could not be.
        cost: of the merge; None if there are errors, or the check is quick.
    """

    recipe: Path
    findings: tuple[Finding, ...]
    lineages: dict[str, Lineage] = field(default_factory=dict)
    cost: Cost | None = None

    @property
    def errors(self) -> int:
        """How many findings forbid the merge."""
        return sum(finding.severity == "error" for finding in self.findings)


def check_recipe(
    path: Path, out: Path | None = None, overwrite: bool = False, quick: bool = False, progress: bool = False
) -> CheckReport:
    """Find everything that is wrong with a recipe and what it names. Nothing is raised, and nothing is written.

    Args:
        path: the recipe.
        out: the bundle's destination; None: the destination and its disk space are not checked.
        overwrite: an existing bundle would be replaced.
        quick: do not read the values of the weights.
        progress: report on stderr.
    """
    inputs, findings = _open(path, out, overwrite)
    lineages: dict[str, Lineage] = {}
    cost = None
    if inputs is not None and not quick:
        with Progress(progress).stage("reading the weights", len(inputs.merged().tensors)) as advance:
            more, lineages = check_weights(inputs, advance)
        findings += more
        if not any(finding.severity == "error" for finding in findings):
            cost = measured_cost(inputs)
    return CheckReport(path, _sorted(findings), lineages, cost)


def checked_inputs(path: Path, out: Path, overwrite: bool = False) -> tuple[Inputs, tuple[Finding, ...]]:
    """Open a recipe's inputs after every check that does not read all weights.

    Some matrices are read, for warnings about a base that is not the fine-tunes' own, and about changes that no expert
    will hold.

    Returns:
        The inputs, and the warnings.

    Raises:
        CheckError: there are errors; it has all of them.
    """
    inputs, findings = _open(path, out, overwrite)
    if inputs is None or any(finding.severity == "error" for finding in findings):
        raise CheckError(_sorted(findings))
    return inputs, (*findings, *sample_weights(inputs))


def _open(path: Path, out: Path | None, overwrite: bool) -> tuple[Inputs | None, list[Finding]]:
    """All checks but `check_weights`. The inputs are None if an error makes reading their weights pointless."""
    target = [] if out is None else check_target(out, overwrite)
    try:
        recipe = load_recipe(path)
    except RecipeError as error:
        return None, [*errors("recipe", [f"{path}: {fault}" for fault in error.faults]), *target]
    base, findings = open_base(recipe)
    findings = [*warnings("recipe", recipe.remarks), *findings]
    fine_tunes, more = open_fine_tunes(recipe, base)
    examples, worse = open_examples(recipe)
    findings += [*more, *worse, *check_router(recipe), *target]
    if base is None:
        return None, findings
    findings += [*_selection(recipe, base), *_served(base), *check_generation(base, "base")]
    fitting = True
    for name, fine_tune in fine_tunes.items():
        try:
            compared = _compared(recipe, base, fine_tune, f"models.{name}")
        except OSError as error:
            compared = unreadable(f"models.{name}", error)
        fitting &= not any(finding.severity == "error" for finding in compared)
        findings += compared
    if not fitting or len(fine_tunes) < len(recipe.models):
        return None, findings
    recipe = recipe.of_layers(layer_count(base.tensors))
    inputs = Inputs(recipe, recipe.experts.resolved(recipe.calibration is not None), base, fine_tunes, examples)
    findings += [*_runnable(inputs), *_loras(inputs)]
    findings += check_memory(inputs)
    findings += warnings("recipe", foreseen(inputs.experts))
    if out is not None:
        findings += check_room(out, inputs)
    return inputs, findings


def _runnable(inputs: Inputs) -> list[Finding]:
    """If the merge runs the models on prompts, can they be run?"""
    if not inputs.experts.needs_prompts and inputs.recipe.frank_wolfe() is None:
        return []
    try:
        check_runs(inputs.base)
    except CheckpointError as error:
        advice = "experts without prompts (selection: residual) and methods other than frank_wolfe merge any model"
        return errors("base", [f"{fault}; {advice}" for fault in error.faults])
    misfits = [
        finding
        for task, fine_tune in inputs.fine_tunes.items()
        for finding in errors(f"models.{task}", _misfits(inputs.base, fine_tune))
    ]
    try:
        _, told = inputs.calibration_tokens()
    except CalibrationError as error:
        return [*misfits, *errors("calibration", [str(error)])]
    return [*misfits, *warnings("calibration", told)]


def _loras(inputs: Inputs) -> list[Finding]:
    """Where experts shall be the fine-tunes' own LoRAs, are they?"""
    if inputs.experts.form != "lora":
        return []
    reasons = {task: why_no_lora(inputs.base, fine_tune) for task, fine_tune in inputs.fine_tunes.items()}
    return [
        finding
        for task, reason in reasons.items()
        if reason is not None
        for finding in errors(f"models.{task}", [f"{reason}: experts.form: lora is for plain LoRAs on the base"])
    ]


def _misfits(base: Checkpoint, fine_tune: Checkpoint) -> list[str]:
    """Tensors that do not fit into the base's model, which runs the fine-tune on prompts; also those not merged."""
    names = base.tensors.keys() & fine_tune.tensors.keys()
    return [
        f"{fine_tune.path} cannot be run on prompts: {name} is {list(fine_tune.tensors[name].shape)}, the base's is "
        f"{list(base.tensors[name].shape)}; experts without prompts (selection: residual) need no run"
        for name in sorted(names)
        if fine_tune.tensors[name].shape != base.tensors[name].shape
    ]


def _compared(recipe: Recipe, base: Checkpoint, fine_tune: Checkpoint, subject: str) -> list[Finding]:
    if isinstance(fine_tune, AdaptedCheckpoint):
        adapted = compare_adapted(base, fine_tune.model, subject)
        # What was trained with the adapter's tokenizer beside it is the adapter; config.json is the model's.
        return [
            *adapted,
            *compare_tensors(recipe, base, fine_tune, subject),
            *(compare_settings(base, fine_tune.model, subject) if adapted else []),
            *compare_tokenizers(base, fine_tune, subject),
            *compare_generation(base, fine_tune, subject),
        ]
    return [
        *compare_settings(base, fine_tune, subject),
        *compare_tensors(recipe, base, fine_tune, subject),
        *compare_tokenizers(base, fine_tune, subject),
        *compare_generation(base, fine_tune, subject),
    ]


def _served(base: Checkpoint) -> list[Finding]:
    """Would `overtone serve` refuse the bundle for its architecture?"""
    names = base.config.get("architectures") or []
    if not isinstance(names, list) or not names or set(map(str, names)) & set(SERVED_ARCHITECTURES):
        return []
    return warnings(
        "base",
        [
            f"{base.path}: config.json names {', '.join(map(str, names))}, which `overtone serve` does not serve (it "
            f"serves {', '.join(SERVED_ARCHITECTURES)}): the bundle can be merged, inspected and exported only"
        ],
    )


def _selection(recipe: Recipe, base: Checkpoint) -> list[Finding]:
    found = []
    if base.config.get("auto_map"):
        found += warnings("base", [f"{base.path}: config.json names custom code (auto_map), which is never run"])
    chosen = recipe.model_fields_set & {"include", "exclude"}
    for key in sorted(chosen):
        for pattern in getattr(recipe, key):
            if not _matches(pattern, base):
                found += warnings("recipe", [f"{key}: {pattern!r} matches no tensor of the base"])
    return found


def _matches(pattern: str, base: Checkpoint) -> bool:
    return any(fnmatchcase(name, pattern) for name in base.tensors)


def _sorted(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: finding.severity))
