"""Reading a recipe, and saying what is wrong with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from merge.frank_wolfe import FrankWolfeConfig
from merge.methods import METHODS, Method
from merge.recipe.mergekit import translated
from merge.recipe.parameters import alternatives, is_filtered, is_gradient
from merge.recipe.schema import FRANK_WOLFE, ModelEntry, Recipe
from merge.recipe.wording import Location, among, dotted, faults

Block = tuple[Location, Mapping[str, Any]]
"""A block of parameters, and its place in the recipe."""


class RecipeError(ValueError):
    """A recipe is missing, malformed or asks for what cannot be. The message is one line.

    Attributes:
        path: the recipe.
        faults: each of them, without the recipe's path.
    """

    def __init__(self, path: Path, faults: list[str]) -> None:
        super().__init__(f"{path}: {'; '.join(faults)}")
        self.path = path
        self.faults = tuple(faults)


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, which on its own would let a key overwrite an earlier one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} appears twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe, check all of it but the models' files, and make its paths absolute.

    Raises:
        RecipeError: every fault found, each with its place in the recipe and what would be right.
    """
    translation = translated(_parse(path))
    document, found = translation.document, translation.faults
    document.setdefault("name", path.stem)
    recipe = None
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        # A key that is not supported is named once, by what it would do.
        named = {fault.split(":")[0] for fault in found}
        found += [fault for fault in faults(error, (), Recipe) if fault.split(":")[0] not in named]
    found += _parameter_faults(document)
    if recipe is None or found:
        raise RecipeError(path, found)
    folder = path.absolute().parent
    calibration = recipe.calibration
    if calibration is not None:
        calibration = calibration.model_copy(update={"file": folder / calibration.file.expanduser()})
    return recipe.remarked(translation.remarks).model_copy(
        update={
            "base_model": folder / recipe.base_model.expanduser(),
            "models": tuple(_located(entry, folder) for entry in recipe.models),
            "calibration": calibration,
            "router": recipe.router.located(folder),
        }
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        # _UniqueKeys is a SafeLoader: no tag can build anything but plain data.
        document = yaml.load(path.read_bytes(), _UniqueKeys)
    except OSError as error:
        raise RecipeError(path, [f"cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(path, [f"is not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(document, dict):
        raise RecipeError(path, ["must be a mapping with the keys base_model and models"])
    return document


def _located(entry: ModelEntry, folder: Path) -> ModelEntry:
    """An entry with absolute paths, `model+adapter` taken apart unless a directory has that very name."""
    model, adapter = folder / entry.model.expanduser(), entry.adapter
    if adapter is None and "+" in str(entry.model) and not model.is_dir():
        first, _, second = str(entry.model).partition("+")
        model, adapter = folder / Path(first).expanduser(), Path(second)
    located = None if adapter is None else folder / adapter.expanduser()
    return entry.model_copy(update={"model": model, "adapter": located})


def _parameter_faults(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with the parameters, as far as the document has the shape of a recipe."""
    name = document.get("merge_method", Recipe.model_fields["merge_method"].default)
    if not isinstance(name, str):
        return []  # the shape's fault
    entries = document.get("models")
    blocks = [
        (("models", number, "parameters"), entry["parameters"])
        for number, entry in enumerate(entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("parameters"), dict)
    ]
    common = document.get("parameters")
    parameters: Mapping[str, Any] = common if isinstance(common, dict) else {}
    if name == FRANK_WOLFE:
        return _frank_wolfe_faults(document, parameters, blocks)
    method = METHODS.get(name)
    if method is None:
        return [f"merge_method: unknown {among(name, sorted((*METHODS, FRANK_WOLFE)))}"]
    found = _block_faults(("parameters",), parameters, method.parameters, method)
    for place, values in blocks:
        found += _block_faults(place, values, method.task_parameters, method)
    return found


def _frank_wolfe_faults(
    document: Mapping[str, Any], parameters: Mapping[str, Any], blocks: Sequence[Block]
) -> list[str]:
    found = [
        f"{dotted(place)}: {FRANK_WOLFE} takes none for a single model: its coefficients are fitted"
        for place, values in blocks
        if values
    ]
    if document.get("calibration") is None:
        found.append(f"merge_method: {FRANK_WOLFE} follows a loss: add a calibration block with a file of prompts")
    try:
        FrankWolfeConfig.model_validate(parameters)
    except ValidationError as error:
        found += faults(error, ("parameters",), FrankWolfeConfig)
    return found


def _block_faults(place: Location, values: Mapping[str, Any], schema: type[BaseModel], method: Method) -> list[str]:
    if values and place[0] == "models" and not schema.model_fields:
        return [f"{dotted(place)}: {method.name} takes none for a single model"]
    found: list[str] = []
    for key, value in values.items():
        listed = isinstance(value, list) and not (is_filtered(value) or is_gradient(value))
        if listed and not all(isinstance(item, str) for item in value):
            found.append(f"{dotted((*place, key))}: a list over layers holds numbers only, not {value}")
            continue
        try:
            for one in alternatives(value):
                schema.model_validate({key: one})
        except ValidationError as error:
            found += faults(error, place, schema)
        except ValueError as error:
            found.append(f"{dotted((*place, key))}: {error}")
    return found
