"""A base and two fine-tunes with a recipe, free to be spoilt, and what a check then finds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.check import CheckReport, check_recipe
from tests.merge.tiny import save_fine_tune, save_tiny


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("originals")
    save_tiny(root / "base", tied=False)
    save_tiny(root / "stranger", seed=9, tied=False)
    for seed, name in enumerate(("one", "two")):
        save_fine_tune(root / "base", root / name, seed, embeddings=False)
    return root


@pytest.fixture
def models(originals: Path, tmp_path: Path) -> Path:
    """A folder with base, one, two, stranger and recipe.yml."""
    shutil.copytree(originals, tmp_path / "models")
    write_recipe(tmp_path / "models")
    return tmp_path / "models"


def write_recipe(folder: Path, **changes: object) -> Path:
    document = {"name": "tiny", "base_model": "base", "models": [{"model": "one"}, {"model": "two"}], **changes}
    path = folder / "recipe.yml"
    path.write_text(json.dumps(document))
    return path


def edit_json(path: Path, **changes: object) -> None:
    """Change fields; None removes one."""
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def edit_tensors(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def told(report: CheckReport, severity: str) -> list[str]:
    return [f"{item.subject}: {item.message}" for item in report.findings if item.severity == severity]


def errors(models: Path, **options: object) -> list[str]:
    return told(check_recipe(models / "recipe.yml", **options), "error")  # type: ignore[arg-type]


def warnings(models: Path, **options: object) -> list[str]:
    return told(check_recipe(models / "recipe.yml", **options), "warning")  # type: ignore[arg-type]
