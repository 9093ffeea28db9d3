import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merge.bundle import Bundle, open_bundle
from merge.check.inputs import Inputs as Opened
from merge.checkpoint import open_checkpoint
from merge.inspect.inputs import find_inputs
from merge.lora import AdaptedCheckpoint, open_adapter
from merge.recipe import load_recipe
from tests.merge.lora.adapters import Q, factors, write_adapter

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def changed(bundle: Bundle, tmp_path: Path) -> Callable[[Change], Bundle]:
    """A copy of the bundle whose manifest lists other inputs."""

    def make(change: Change) -> Bundle:
        copy = tmp_path / "bundle"
        shutil.copytree(bundle.path, copy)
        manifest = json.loads((copy / "bundle.json").read_text())
        change(manifest["inputs"])
        (copy / "bundle.json").write_text(json.dumps(manifest))
        return open_bundle(copy)

    return make


def test_everything_is_found_where_it_was(bundle: Bundle) -> None:
    found = find_inputs(bundle)
    assert found.missing == ()
    assert found.base is not None
    assert list(found.fine_tunes) == ["one", "two"]
    assert found.prompts is not None
    assert {task: len(prompts) for task, prompts in found.prompts.items()} == {"one": 40, "two": 40}


def test_an_adapter_is_opened_on_its_model(bundle: Bundle, changed: Callable[[Change], Bundle], tmp_path: Path) -> None:
    base = open_checkpoint(bundle.path.parent / "base")
    path = write_adapter(tmp_path / "adapter", factors(Q, 32, 32))
    recipe = load_recipe(bundle.path / "recipe.yml")
    opened = Opened(recipe, recipe.experts, base, {"two": open_adapter(path, base)}, None)
    entry = opened.digests()["models/two"]
    moved = changed(lambda inputs: inputs.update({"models/two": entry}))
    found = find_inputs(moved)
    assert isinstance(found.fine_tunes["two"], AdaptedCheckpoint)
    assert not any("two" in text for text in found.missing)
    write_adapter(path, factors(Q, 32, 32, seed=1))
    found = find_inputs(moved)
    assert list(found.fine_tunes) == ["one"]
    assert "The model two has changed since the merge." in found.missing


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda inputs: inputs["base"].update(path="/nowhere"), "The model base cannot be read"),
        (lambda inputs: inputs["base"].update(sha256="0"), "The model base has changed since the merge."),
        (lambda inputs: inputs.pop("base"), "does not say where the model base was"),
        (lambda inputs: inputs.update({"models/one": "somewhere"}), "does not say where the model one was"),
    ],
)
def test_what_is_missing_is_said(changed: Callable[[Change], Bundle], change: Change, missing: str) -> None:
    found = find_inputs(changed(change))
    assert any(missing in text for text in found.missing)
    assert "one" not in found.fine_tunes or found.base is not None


def test_a_recipe_of_another_version_is_no_error(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "bundle")
    recipe = tmp_path / "bundle" / "recipe.yml"
    recipe.write_text("name: tiny\nnonsense: 1\n")
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    manifest["files"]["recipe.yml"]["bytes"] = recipe.stat().st_size
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(manifest))
    found = find_inputs(open_bundle(tmp_path / "bundle"))
    assert (found.recipe, found.base, found.prompts) == (None, None, None)
    assert found.missing[0].startswith("The recipe cannot be read: ")
