"""`--lora-modules`, in the forms that vLLM takes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from serve.config import LoraModule

FLAG = "--lora-modules"

_FORMS = 'NAME=PATH, or JSON as in {"name": "sql", "path": "adapters/sql", "base_model_name": "base"}'


def spread(arguments: Sequence[str]) -> list[str]:
    """Arguments with the flag before each of its values, as `--lora-modules a=x --lora-modules b=y` for `... a=x b=y`.

    A value holds `=` or begins as JSON does; anything else after the flag's first value is an argument by itself.
    """
    found: list[str] = []
    within = False
    for argument in arguments:
        if argument == FLAG:
            within = True
            found.append(argument)
            continue
        if within and found[-1] != FLAG:
            within = not argument.startswith("-") and ("=" in argument or argument[:1] in ("{", "["))
            if within:
                found.append(FLAG)
        found.append(argument)
    return found


def lora_modules(values: Sequence[str]) -> tuple["LoraModule", ...]:
    """The adapters that the flag's values name.

    Raises:
        typer.BadParameter: a value has neither of the two forms, or a name stands twice.
    """
    found = [module for value in values if value for module in _modules(value)]
    names = [module.name for module in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise typer.BadParameter(f"the name {twice!r} is given twice", param_hint=FLAG)
    return tuple(found)


def _modules(value: str) -> list["LoraModule"]:
    from serve.config import LoraModule  # torch takes a second to import; --help should not

    if value[:1] not in ("{", "["):
        name, found, path = value.partition("=")
        if not (name and found and path):
            raise typer.BadParameter(f"{value!r} must be {_FORMS}", param_hint=FLAG)
        return [_made(LoraModule, name, path, None)]
    try:
        document: Any = json.loads(value)
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} is not valid JSON: {error}", param_hint=FLAG) from error
    modules = document if isinstance(document, list) else [document]
    known = {"name", "path", "base_model_name"}
    for module in modules:
        if (
            not isinstance(module, dict)
            or not {"name", "path"} <= set(module) <= known
            or not all(isinstance(text, str) for text in module.values())
        ):
            raise typer.BadParameter(f"{value!r} must be {_FORMS}", param_hint=FLAG)
    return [_made(LoraModule, m["name"], m["path"], m.get("base_model_name")) for m in modules]


def _made(of: type["LoraModule"], name: str, path: str, base: str | None) -> "LoraModule":
    try:
        return of(name, Path(path), base)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=FLAG) from error
