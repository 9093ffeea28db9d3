"""What inputs are known by: digests, and the key that decides whether a merge is resumed."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from merge.check import checked_inputs
from tests.merge.check.conftest import errors, write_recipe
from tests.merge.lora.adapters import Q, factors, write_adapter


def key(models: Path) -> str:
    inputs, _ = checked_inputs(models / "recipe.yml", models / "out")
    return inputs.key(models / "recipe.yml", inputs.digests(), {"torch": "1"})


def test_a_base_is_read_once_however_many_adapters_it_has(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("a", "b", "c")):
        write_adapter(models / name, factors(Q, 32, 32, seed=seed))
    write_recipe(models, models=[{"model": name} for name in "abc"])
    inputs, _ = checked_inputs(models / "recipe.yml", models / "out")
    read: list[str] = []
    file_digest = hashlib.file_digest

    def watched(file: Any, name: str) -> Any:
        read.append(Path(file.name).relative_to(models).as_posix())
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    digests = inputs.digests()
    assert len({item["sha256"] for item in digests.values()}) == 4
    assert read.count("base/model.safetensors") == 1


@pytest.mark.parametrize("file", ["config.json", "chat_template.jinja", "tokenizer.model", "merges.txt"])
@pytest.mark.parametrize("model", ["base", "one"])
def test_every_file_that_the_bundle_depends_on_is_in_the_key(models: Path, model: str, file: str) -> None:
    before = key(models)
    assert key(models) == before
    path = models / model / file
    path.write_text((path.read_text() if path.exists() else "") + " ")
    assert key(models) != before


def test_a_task_whose_router_cannot_be_trained_is_found_at_once(models: Path) -> None:
    lines = ['{"task": "one", "prompt": "ab"}', '{"task": "two", "prompt": "ba"}', '{"task": "two", "prompt": "b"}']
    (models / "prompts.jsonl").write_text("\n".join(lines))
    write_recipe(models, calibration={"file": "prompts.jsonl"}, experts={"values": "rescaled", "distill": 0})
    found = errors(models)
    wanted = "the router needs at least 2 different prompts of task 'one'; a few dozen are recommended"
    assert f"calibration: {wanted}" in found
