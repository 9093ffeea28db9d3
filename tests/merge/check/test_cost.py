"""What a merge will take, on tiny models."""

from pathlib import Path

import pytest

from merge.check import check_recipe, checked_inputs
from merge.check.cost import Cost, measured_cost
from merge.check.place import bundle_bytes
from tests.merge.check.conftest import write_recipe


def test_an_estimate_has_time_memory_and_disk(models: Path) -> None:
    inputs, _ = checked_inputs(models / "recipe.yml", models / "out")
    cost = measured_cost(inputs)
    assert list(cost.seconds) == ["inputs", "backbone", "experts", "bundle"]
    assert all(seconds > 0 for seconds in cost.seconds.values())
    assert cost.disk_bytes == bundle_bytes(inputs)
    assert cost.memory_bytes >= inputs.job_bytes()


@pytest.mark.parametrize("method", ["tsv_m", "ties", "base"])
def test_every_kind_of_method_is_measured(models: Path, method: str) -> None:
    path = write_recipe(models, merge_method=method)
    inputs, _ = checked_inputs(path, models / "out")
    assert measured_cost(inputs).seconds["backbone"] > 0


def test_calibration_costs_more(models: Path) -> None:
    inputs, _ = checked_inputs(models / "recipe.yml", models / "out")
    plain = measured_cost(inputs).seconds["experts"]
    lines = "".join(f'{{"task": "{task}", "prompt": "a{n}"}}\n' for task in ("one", "two") for n in range(2))
    (models / "prompts.jsonl").write_text(lines)
    calibrated, _ = checked_inputs(write_recipe(models, calibration={"file": "prompts.jsonl"}), models / "other")
    assert measured_cost(calibrated).seconds["experts"] > plain


def test_the_check_tells_it(models: Path) -> None:
    assert check_recipe(models / "recipe.yml").cost is not None
    assert check_recipe(models / "recipe.yml", quick=True).cost is None


def test_a_cost_in_a_line() -> None:
    cost = Cost({"inputs": 20.4, "backbone": 600.0, "experts": 10_800.0, "bundle": 5.0}, 6 * 10**9, 17 * 10**9)
    assert cost.summary() == (
        "about 3.2 h (inputs 20 s, backbone 10 min, experts 3.0 h, bundle 5 s), 6 GB of memory, 17 GB on disk"
    )
    assert Cost({"bundle": 0.0}, 9 * 10**8, 2_701_344).summary().endswith("900 MB of memory, 2.7 MB on disk")
