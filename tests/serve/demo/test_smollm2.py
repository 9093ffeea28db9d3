"""The demo's recipe as it is filled in, without the model and without a download."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from merge.recipe import load_recipe
from serve.demo import SMOLLM2, smollm2
from serve.demo.zoo.real import BaseUnavailableError
from serve.demo.zoo.real.tasks import TASKS, find_task, out_of_scope


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    found = {task.name: tmp_path / "it's an: adapter" / task.name for task in TASKS}
    for directory in found.values():
        directory.mkdir(parents=True)
        (directory / "adapter_model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(smollm2, "adapter_dirs", lambda: found)
    return found


def test_the_recipe_names_what_is_there(adapters: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path, inputs = smollm2.write_recipe(folder, tmp_path / "base", tmp_path / "encoder")
    recipe = load_recipe(path)
    assert recipe.name == "smollm2-135m"
    assert recipe.base_model == tmp_path / "base"
    assert {entry.name: entry.model for entry in recipe.models} == adapters
    assert recipe.calibration is not None
    assert recipe.calibration.chat_template == "auto"
    assert recipe.router.encoder == tmp_path / "encoder"
    assert {*inputs} == {
        *(directory / "adapter_model.safetensors" for directory in adapters.values()),
        recipe.calibration.file,
        recipe.router.foreign,
    }


def test_the_router_learns_from_training_texts_alone(adapters: dict[str, Path], tmp_path: Path) -> None:
    smollm2.write_recipe(tmp_path, tmp_path, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert min(Counter(line["task"] for line in lines).values()) >= smollm2.PER_TASK
    for name in ("intent", "sql"):
        unseen = {example.prompt for example in find_task(name).examples("test", phrasings="held_out")}
        assert not unseen & {line["prompt"] for line in lines}
    foreign = {json.loads(line)["prompt"] for line in (tmp_path / "foreign.jsonl").read_text().splitlines()}
    assert foreign == {*out_of_scope("train")}
    assert not foreign & {*out_of_scope("test")}


def test_the_bundle_follows_its_inputs(
    adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(smollm2, "base_dir", lambda cache: tmp_path / "base")
    monkeypatch.setattr(smollm2, "encoder_dir", lambda cache: tmp_path / "encoder")
    monkeypatch.setattr(
        smollm2, "kept_bundle", lambda name, recipe, inputs, *_: asked.append((recipe, inputs)) or recipe
    )
    cache = tmp_path / "cache"
    (cache / "smollm2-135m").mkdir(parents=True)
    assert smollm2.smollm2_bundle(cache) == cache / "smollm2-135m" / "recipe.yml"
    assert asked[0][0].read_text().count(str(tmp_path)) == 12


def test_each_task_has_an_example() -> None:
    assert len(SMOLLM2.examples) == len(TASKS) + 1


def test_without_the_package_the_tiny_demo_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "ERROR: no network")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(BaseUnavailableError, match="`overtone demo --tiny` needs no download"):
        smollm2.smollm2_bundle(tmp_path)
