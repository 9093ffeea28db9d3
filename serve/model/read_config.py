"""From a model directory to its configuration: the family that its config.json names reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.bundle import SERVED_ARCHITECTURES, BundleError
from serve.model.config import ModelConfig
from serve.model.errors import ModelError
from serve.model.families import FAMILIES
from serve.model.settings import Settings, read_json


def read_config(directory: Path) -> ModelConfig:
    """Read config.json (and, for the end-of-text tokens, generation_config.json) of a model directory.

    Raises:
        ModelError: no such file, another architecture, or a setting this decoder does not implement (named).
    """
    raw = read_json(directory / "config.json")
    architecture = _architecture(raw, directory)
    try:
        return FAMILIES[architecture](Settings(raw, directory, architecture))
    except KeyError as error:
        raise ModelError(f"{directory / 'config.json'} lacks {error}") from error
    except ModelError:
        raise
    except BundleError as error:
        raise ModelError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{directory / 'config.json'} has a value of the wrong type: {error}") from error


def _architecture(raw: Mapping[str, Any], directory: Path) -> str:
    names: list[str] = raw.get("architectures") or []
    found = next((name for name in names if name in FAMILIES), None)
    if found is None:
        what = ", ".join(names) or f"model_type {raw.get('model_type')!r}"
        raise ModelError(f"{directory} holds {what}; this decoder serves {', '.join(SERVED_ARCHITECTURES)}")
    return found
