"""Finding the inputs of a bundle, if they are still in their places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge.bundle import Bundle
from merge.check.inputs import Inputs as Opened
from merge.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from merge.experts import CalibrationError, read_prompts
from merge.lora import open_adapter
from merge.recipe import Recipe, RecipeError, load_recipe

BASE, MODELS, CALIBRATION = "base", "models/", "calibration"
"""Keys of the manifest's `inputs`."""


@dataclass(frozen=True)
class Inputs:
    """What was found.

    Attributes:
        recipe: None if this version cannot read it.
        base: None if it cannot be read.
        fine_tunes: by name, those that are; none without the base.
        prompts: by task; None if there are none, or not any more.
        missing: what was not found and why, a sentence each.
    """

    recipe: Recipe | None
    base: Checkpoint | None
    fine_tunes: Mapping[str, Checkpoint]
    prompts: Mapping[str, Sequence[str]] | None
    missing: tuple[str, ...]


def find_inputs(bundle: Bundle) -> Inputs:
    """Look for a bundle's inputs. A checkpoint counts only if its digest is the one in the manifest."""
    found = find_models(bundle)
    if found.recipe is None:
        return found
    missing = list(found.missing)
    prompts = _prompts(bundle, found.recipe, missing)
    return replace(found, prompts=prompts, missing=tuple(missing))


def find_models(bundle: Bundle) -> Inputs:
    """Look for a bundle's base and fine-tunes alone, as `find_inputs` does."""
    missing: list[str] = []
    recipe = _recipe(bundle, missing)
    if recipe is None:
        return Inputs(None, None, {}, None, tuple(missing))
    listed = bundle.manifest.inputs
    base = _checkpoint("base", listed.get(BASE), missing)
    fine_tunes: dict[str, Checkpoint] = {}
    if base is not None:
        names = sorted(key.removeprefix(MODELS) for key in listed if key.startswith(MODELS))
        opened = {name: _checkpoint(name, listed[MODELS + name], missing) for name in names}
        fine_tunes = {name: found for name, found in opened.items() if found is not None}
        digests = Opened(recipe, recipe.experts, base, fine_tunes, None).digests()
        changed = {key for key, found in digests.items() if found["sha256"] != listed[key].get("sha256")}
        missing += [f"The model {key.removeprefix(MODELS)} has changed since the merge." for key in sorted(changed)]
        fine_tunes = {name: found for name, found in fine_tunes.items() if MODELS + name not in changed}
        base = None if BASE in changed else base
    return Inputs(recipe, base, fine_tunes if base is not None else {}, None, tuple(missing))


def _recipe(bundle: Bundle, missing: list[str]) -> Recipe | None:
    try:
        return load_recipe(bundle.path / "recipe.yml")
    except RecipeError as error:
        missing.append(f"The recipe cannot be read: {error}.")
        return None


def _checkpoint(name: str, entry: Any, missing: list[str]) -> Checkpoint | None:
    try:
        path, adapts = Path(entry["path"]), entry.get("adapts")
        return open_checkpoint(path) if adapts is None else open_adapter(path, open_checkpoint(Path(adapts)))
    except (CheckpointError, OSError) as error:
        missing.append(f"The model {name} cannot be read: {error}.")
    except (TypeError, KeyError, AttributeError):
        missing.append(f"The manifest does not say where the model {name} was.")
    return None


def _prompts(bundle: Bundle, recipe: Recipe, missing: list[str]) -> Mapping[str, Sequence[str]] | None:
    if recipe.calibration is None:
        missing.append("The recipe has no calibration prompts.")
        return None
    file = _calibration_file(bundle, recipe, recipe.calibration.file)
    try:
        return read_prompts(file, bundle.expert_names)
    except CalibrationError as error:
        missing.append(f"The calibration prompts cannot be read: {error}.")
        return None


def _calibration_file(bundle: Bundle, recipe: Recipe, file: Path) -> Path:
    """The path of the prompts: a path in the bundle's recipe is relative to the original place of the recipe."""
    inputs = bundle.manifest.inputs
    listed = inputs.get(CALIBRATION)
    if isinstance(listed, dict) and isinstance(listed.get("path"), str):
        return Path(listed["path"])
    here = bundle.path.absolute()
    base = inputs.get(BASE, {}).get("path", "")
    if not file.is_relative_to(here) or not recipe.base_model.is_relative_to(here):
        return file
    relative = str(recipe.base_model.relative_to(here))
    return Path(base.removesuffix(relative)) / file.relative_to(here) if base.endswith(relative) else file
