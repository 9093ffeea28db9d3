"""Reading a recipe, and saying in one line what is wrong with it."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from merge.experts.config import CalibrationConfig, ExpertConfig
from merge.methods import METHODS, Method
from merge.recipe.schema import ModelEntry, Recipe
from merge.router import RouterConfig

UNSUPPORTED = {
    "slices": "merging slices of layers",
    "modules": "merging modules of several models",
    "tokenizer": "building a tokenizer (the base's is used)",
    "tokenizer_source": "building a tokenizer (the base's is used)",
    "chat_template": "choosing a chat template (the base's is used)",
}
"""mergekit's keys for what Overtone does not do."""

Location = tuple[str | int, ...]

_BLOCKS: Mapping[str, type[BaseModel]] = {
    "": Recipe,
    "models": ModelEntry,
    "experts": ExpertConfig,
    "calibration": CalibrationConfig,
    "router": RouterConfig,
}


class RecipeError(ValueError):
    """A recipe is missing, malformed or asks for what cannot be. The message is one line."""


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
    document = _parse(path)
    for key, what in UNSUPPORTED.items():
        if key in document:
            raise RecipeError(f"{path}: {key}: not supported: {what}")
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_worded(error, (), _block_keys)}") from error
    _check_parameters(path, recipe)
    folder = path.absolute().parent
    calibration = recipe.calibration
    if calibration is not None:
        calibration = calibration.model_copy(update={"file": folder / calibration.file.expanduser()})
    return recipe.model_copy(
        update={
            "base_model": folder / recipe.base_model.expanduser(),
            "models": tuple(
                entry.model_copy(update={"model": folder / entry.model.expanduser()}) for entry in recipe.models
            ),
            "calibration": calibration,
        }
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        # _UniqueKeys is a SafeLoader: no tag can build anything but plain data.
        document = yaml.load(path.read_bytes(), _UniqueKeys)
    except OSError as error:
        raise RecipeError(f"no readable recipe at {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path} must hold a mapping with base_model, models and so on")
    return document


def _check_parameters(path: Path, recipe: Recipe) -> None:
    method = METHODS.get(recipe.merge_method)
    if method is None:
        raise RecipeError(f"{path}: merge_method: unknown {_among(recipe.merge_method, sorted(METHODS))}")
    _check_one(path, ("parameters",), recipe.parameters, method.parameters, method)
    for number, entry in enumerate(recipe.models):
        _check_one(path, ("models", number, "parameters"), entry.parameters, method.task_parameters, method)


def _check_one(path: Path, place: Location, values: Mapping[str, Any], schema: type[BaseModel], method: Method) -> None:
    for key, value in values.items():
        numbers = isinstance(value, Sequence) and not isinstance(value, str) and key != "exclude"
        if numbers:
            raise RecipeError(f"{path}: {_dotted((*place, key))}: not supported: a list of values over layers")
    try:
        schema.model_validate(values)
    except ValidationError as error:
        known = [field.alias or name for name, field in schema.model_fields.items()]
        if place[0] == "models" and not known:
            raise RecipeError(f"{path}: {_dotted(place)}: {method.name} takes none for a single model") from error
        raise RecipeError(f"{path}: {_worded(error, place, lambda _: known)}") from error


def _block_keys(location: Location) -> list[str]:
    block = location[0] if len(location) > 1 else ""
    return list(_BLOCKS[str(block)].model_fields)


def _worded(error: ValidationError, place: Location, known: Callable[[Location], list[str]]) -> str:
    problems = []
    for item in error.errors():
        location = (*place, *item["loc"])
        message = item["msg"]
        if item["type"] == "extra_forbidden":
            message = f"unknown key {_among(str(location[-1]), known(item['loc']))}"
            location = location[:-1]
        problems.append(f"{_dotted(location)}: {message}" if location else message)
    return "; ".join(problem.replace("Value error, ", "") for problem in problems)


def _dotted(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location)


def _among(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"{name!r}; did you mean {close[0]!r}?" if close else f"{name!r}; there are {', '.join(known) or 'none'}"
