"""A first recipe for the models that are there: `overtone init`."""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from merge.check import Finding, check_recipe
from merge.checkpoint import INDEX, SINGLE, is_gguf
from merge.experts.examples import CalibrationError, read_lines
from merge.lora import is_adapter
from merge.recipe import Recipe
from merge.recipe.schema import NAME, RESERVED
from merge.router import LEAST_PROMPTS
from merge.wording import counted


class DraftError(ValueError):
    """No recipe can be drafted: a directory is missing or is not a model. The message is one line."""


@dataclass(frozen=True)
class FineTune:
    """A fine-tune that was found.

    Attributes:
        name: what the recipe calls it.
        directory: as the user wrote it; a full checkpoint may also be a GGUF file.
        lora: a PEFT adapter on the base; otherwise a full checkpoint.
    """

    name: str
    directory: Path
    lora: bool


@dataclass(frozen=True)
class Draft:
    """A drafted recipe.

    Attributes:
        text: the YAML.
        missing: what must be added or decided, one line each. The recipe's comments also have all of it.
        findings: what `overtone check --quick` finds wrong with it.
    """

    text: str
    missing: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """How many findings forbid the merge."""
        return sum(finding.severity == "error" for finding in self.findings)


def draft_recipe(base: Path, places: Sequence[str], prompts: Path | None = None) -> Draft:
    """Draft a recipe.

    Args:
        base: the base's directory or GGUF file.
        places: of the fine-tunes: a directory or GGUF file, `name=` one, or a folder of them.
        prompts: a calibration file. It is used if it has enough prompts of each fine-tune and of nothing else.

    Raises:
        DraftError: the base is not a full checkpoint, a place holds no fine-tune, or the file of prompts is malformed.
    """
    if is_adapter(base):
        raise DraftError(f"{base} is a LoRA adapter; name the model that it was trained on first")
    if not _is_model(base):
        raise DraftError(
            f"{base} is not a model: it must be a directory with config.json and safetensors, or a GGUF file"
        )
    try:
        counts = None if prompts is None else Counter(task for _, task, _ in read_lines(prompts))
    except CalibrationError as error:
        raise DraftError(str(error)) from error
    found = _named([one for place in places for one in _found(place)], counts or {})
    clash = next((name for name, times in Counter(one.name.casefold() for one in found).items() if times > 1), None)
    if clash is not None:
        raise DraftError(f"two fine-tunes are called {clash!r}: write NAME=DIRECTORY to give them other names")
    missing = _missing_prompts(prompts, found, counts)
    usable = None if missing else prompts
    findings = _check(base, found, usable)
    text = _text(base, found, prompts, usable, missing, findings)
    return Draft(text, tuple(missing), findings)


def _is_model(directory: Path) -> bool:
    if is_gguf(directory):
        return directory.is_file()
    return (directory / "config.json").is_file() and any((directory / name).is_file() for name in (SINGLE, INDEX))


def _found(place: str) -> list[FineTune]:
    name, separator, rest = place.partition("=")
    if separator and not Path(place).exists():
        directory = Path(rest)
        if not (is_adapter(directory) or _is_model(directory)):
            raise DraftError(f"{directory} is neither a model nor a LoRA adapter")
        return [FineTune(_usable(name), directory, is_adapter(directory))]
    folder = Path(place)
    if is_adapter(folder) or _is_model(folder):
        return [FineTune(_usable(_own_name(folder)), folder, is_adapter(folder))]
    if not folder.is_dir():
        raise DraftError(f"{folder} is not a directory")
    inside = [path for path in sorted(folder.iterdir()) if is_adapter(path) or _is_model(path)]
    if not inside:
        raise DraftError(
            f"{folder} is neither a model (config.json and safetensors, or a GGUF file) nor a LoRA adapter "
            "(adapter_config.json), and has none in it"
        )
    return [FineTune(_usable(_own_name(path)), path, is_adapter(path)) for path in inside]


def _own_name(directory: Path) -> str:
    """The directory's name, or its parent's if that says more: of a Trainer's checkpoint, of the Hub's cache."""
    path = Path(os.path.normpath(directory.absolute()))
    if is_gguf(path):
        return path.stem
    if path.parent.name == "snapshots":  # models--ORGANISATION--NAME/snapshots/COMMIT
        return path.parent.parent.name.rpartition("--")[2]
    return path.parent.name if re.fullmatch(r"checkpoint-\d+|final|adapter", path.name) else path.name


def _usable(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100]
    return plain if NAME.fullmatch(plain) and plain not in RESERVED else f"model-{plain}".rstrip("-")


def _named(found: Sequence[FineTune], counts: Mapping[str, int]) -> list[FineTune]:
    """The fine-tunes. A directory whose name contains the name of one task of the prompts gets the task's name."""
    taken = {one.name for one in found}
    named = []
    for one in found:
        words = re.split(r"[^a-z0-9]+", one.name.casefold())
        close = [task for task in counts if task not in taken and task.casefold() in words and NAME.fullmatch(task)]
        rename = one.name not in counts and len(close) == 1
        named.append(replace(one, name=close[0]) if rename else one)
    return named


def _missing_prompts(prompts: Path | None, found: Sequence[FineTune], counts: Mapping[str, int] | None) -> list[str]:
    if prompts is None or counts is None:
        return [
            "prompts: without them experts are cut from the weights alone, and there is no router, so the model `auto` "
            "is the backbone alone; add a file with a few dozen prompts a task"
        ]
    few = [one.name for one in found if counts.get(one.name, 0) < LEAST_PROMPTS]
    names = {one.name for one in found}
    missing = [
        f"prompts of {name}: {prompts} has {counted(counts.get(name, 0), 'prompt')} of it and must have at least "
        f"{LEAST_PROMPTS}, a few dozen are recommended"
        for name in few
    ]
    return missing + [
        f"a fine-tune called {task}: {prompts} has {counted(times, 'prompt')} of it; remove them, or name its "
        f"fine-tune {task}=DIRECTORY"
        for task, times in counts.items()
        if task not in names
    ]


def _check(base: Path, found: Sequence[FineTune], prompts: Path | None) -> tuple[Finding, ...]:
    document: dict[str, object] = {
        "name": _bundle_name(found),
        "base_model": str(base.absolute()),
        "models": [{"name": one.name, "model": str(one.directory.absolute())} for one in found],
    }
    if prompts is not None:
        document["calibration"] = {"file": str(prompts.absolute())}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yml")
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return check_recipe(path, quick=True).findings


def _bundle_name(found: Sequence[FineTune]) -> str:
    names = {one.name for one in found}
    return next(name for name in ("merged", *(f"merged-{n}" for n in range(len(names) + 1))) if name not in names)


def _text(
    base: Path,
    found: Sequence[FineTune],
    prompts: Path | None,
    usable: Path | None,
    missing: Sequence[str],
    findings: Sequence[Finding],
) -> str:
    loras = sum(one.lora for one in found)
    kinds = [
        counted(number, noun) for number, noun in ((loras, "LoRA"), (len(found) - loras, "full fine-tune")) if number
    ]
    named = [base, *(one.directory for one in found), *filter(None, [usable])]
    relative = any(not path.is_absolute() for path in named)
    place = f" Paths are relative to this file: save it in {Path.cwd()}." if relative else ""
    lines = [
        f"# {' and '.join(kinds)} of {base}, drafted by `overtone init`.{place}",
        "# Next: overtone check RECIPE, overtone merge RECIPE BUNDLE, overtone serve BUNDLE.",
    ]
    lines += [f"# MISSING {line}" for line in missing]
    lines += [f"# {finding.severity.upper()} {finding.subject}: {finding.message}" for finding in findings]
    lines += [
        f"name: {_bundle_name(found)}",
        f"base_model: {_scalar(str(base))}",
        *_method(found),
        "models:",
    ]
    for one in found:
        entry = f"  - {{name: {_scalar(one.name)}, model: {_scalar(str(one.directory))}}}"
        lines.append(f"{entry}   # {'LoRA' if one.lora else 'full fine-tune'}")
    if usable is not None:
        lines += ["calibration:", f"  file: {_scalar(str(usable))}   # fits the experts and trains the router"]
        return "\n".join(lines) + "\n"
    lines += [
        "# calibration:   # without it: experts from the weights alone, no router",
        f"#   file: {_scalar(str(prompts or 'prompts.jsonl'))}   # a JSON object a line:",
        f'#   {{"task": "{found[0].name}", "prompt": "what a user would type"}}',
    ]
    return "\n".join(lines) + "\n"


def _method(found: Sequence[FineTune]) -> list[str]:
    if all(one.lora for one in found):
        return [
            "merge_method: base   # the backbone is the base, an expert is its LoRA, or what 1 % of the bytes holds",
            "# experts: {form: lora}   # keeps each LoRA whatever its bytes; docs/experts.md has the other choices",
        ]
    return [
        f"merge_method: {Recipe.model_fields['merge_method'].default}   # makes the backbone; see docs/merging.md",
        "# experts: {budget: 1%}   # of the backbone's bytes, for each expert; see docs/experts.md",
    ]


def _scalar(text: str) -> str:
    """A string as YAML writes it inside braces."""
    return yaml.safe_dump([text], default_flow_style=True, width=10**6, allow_unicode=True).strip()[1:-1]
