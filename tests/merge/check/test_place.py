"""The output's directory and its disk."""

import shutil
from math import prod
from pathlib import Path
from typing import NamedTuple

import pytest

from merge.check import checked_inputs, place
from merge.check.place import SLACK, bundle_bytes
from merge.run import merge_recipe
from tests.merge.check.conftest import errors, warnings, write_recipe


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> list[Path]:
    asked: list[Path] = []

    def disk_usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(10**12, 10**12 - free, free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return asked


def test_a_disk_that_is_too_small(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, _ = checked_inputs(models / "recipe.yml", models / "out")
    needed = bundle_bytes(inputs) + SLACK
    asked = with_free(monkeypatch, needed - 1)
    (wrong,) = errors(models, out=models / "far" / "out")
    assert wrong.startswith("output: ")
    assert "free some space, or choose another path" in wrong
    assert asked == [models]
    with_free(monkeypatch, needed)
    assert errors(models, out=models / "far" / "out") == []


def test_the_merge_before_it_is_rounded_needs_room_as_well(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, _ = checked_inputs(write_recipe(models, backbone={"storage": "int4"}), models / "out")
    wide = 4 * sum(prod(info.shape) for info in inputs.base.tensors.values())
    with_free(monkeypatch, bundle_bytes(inputs) + wide + SLACK - 1)
    assert [message for message in errors(models, out=models / "out") if "free some" in message]
    with_free(monkeypatch, bundle_bytes(inputs) + wide + SLACK)
    assert errors(models, out=models / "out") == []


def test_the_estimate_covers_the_bundle_and_not_much_more(models: Path) -> None:
    path = write_recipe(models, experts={"density": 0.2})
    inputs, _ = checked_inputs(path, models / "out")
    merge_recipe(path, models / "out", progress=False)
    written = sum(file.stat().st_size for file in (models / "out").rglob("*.safetensors"))
    tensors = written - 3 * 8192  # headers
    assert tensors < bundle_bytes(inputs) + SLACK
    assert bundle_bytes(inputs) < 2 * written


def test_the_starting_point_of_frank_wolfe_needs_room_as_well(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f'{{"task": "{task}", "prompt": "ab", "answer": "ba"}}\n' for task in ("one", "two"))
    (models / "prompts.jsonl").write_text(lines)
    write_recipe(
        models,
        merge_method="frank_wolfe",
        parameters={"init": {"method": "linear"}},
        calibration={"file": "prompts.jsonl"},
    )
    with_free(monkeypatch, 0)
    assert [message for message in errors(models, out=models / "out") if "Frank-Wolfe's starting point" in message]


def test_too_little_memory_is_a_warning(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "available_host_bytes", lambda: 300 << 20)
    (warned,) = warnings(models, quick=True)
    assert warned == "memory: cutting an expert may take 0.4 GB; 0.3 GB are available"
    monkeypatch.setattr(place, "available_host_bytes", lambda: 100 << 20)
    (wrong,) = errors(models, quick=True)
    assert wrong == "memory: cutting an expert may take 0.4 GB; 0.1 GB are available"
    monkeypatch.setattr(place, "available_host_bytes", lambda: 300 << 20)
    lines = "".join(f'{{"task": "{task}", "prompt": "a{n}"}}\n' for task in ("one", "two") for n in range(2))
    (models / "prompts.jsonl").write_text(lines)
    write_recipe(models, calibration={"file": "prompts.jsonl"})
    assert "experts without prompts (selection: residual) need far less" in " ".join(warnings(models, quick=True))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_in_use(models: Path, overwrite: bool) -> None:
    (models / "out").mkdir()
    assert errors(models, out=models / "out", overwrite=overwrite) == []
    (models / "out" / "file").touch()
    (wrong,) = errors(models, out=models / "out", overwrite=overwrite)
    assert ("it is not overwritten" if overwrite else "pass --overwrite") in wrong
    assert "is a file" in errors(models, out=models / "out" / "file", overwrite=overwrite)[0]


def test_a_place_that_cannot_be_written_to(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append(path))
    (wrong,) = errors(models, out=models / "far" / "out")
    assert wrong == f"output: {models} cannot be written to: choose another path"
    assert asked == [models]
