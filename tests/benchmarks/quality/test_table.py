from pathlib import Path

import pytest

from benchmarks.quality.curves import scaling_curves
from benchmarks.quality.rows import ROWS, SUMS
from benchmarks.quality.store import OutOfTimeError, Store
from benchmarks.quality.table import Cut, Table
from tests.benchmarks.quality.fake import FakeDomain

BY_NAME = {row.name: row for row in ROWS}
SUM = BY_NAME["task arithmetic"]


def test_lambda_is_the_best_on_validation_data_whatever_the_test_says(tmp_path: Path) -> None:
    domain = FakeDomain(tmp_path / "models", lucky=SUMS[0])
    table = Table(domain, Store(tmp_path / "store"))
    assert table.scale(SUM) == SUMS[-1]
    assert set(domain.asked) == {"validation"}
    assert table.backbone(SUM, 0).accuracy() == dict.fromkeys(domain.tasks, 0.0)


def test_cells_are_measured_once(tmp_path: Path) -> None:
    domain = FakeDomain(tmp_path / "models")
    first = Table(domain, Store(tmp_path / "store")).with_experts(SUM, Cut("calibrated", 0.5), 0)
    asked = len(domain.asked)
    again = Table(domain, Store(tmp_path / "store", lambda: False))
    assert again.with_experts(SUM, Cut("calibrated", 0.5), 0) == first
    assert len(domain.asked) == asked
    with pytest.raises(OutOfTimeError):
        again.with_experts(SUM, Cut("calibrated", 0.5), 1)


def test_fine_tunes_are_right_the_base_is_not_and_an_expert_closes_the_gap(tmp_path: Path) -> None:
    domain = FakeDomain(tmp_path / "models")
    table = Table(domain, Store(tmp_path / "store"))
    everything = dict.fromkeys(domain.tasks, 1.0)
    assert table.individual(0).accuracy() == everything
    assert table.backbone(BY_NAME["pretrained"], 0).accuracy() == dict.fromkeys(domain.tasks, 0.0)
    half, whole = (table.with_experts(BY_NAME["pretrained"], Cut("calibrated", d), 0) for d in (0.5, 1.0))
    assert half.accuracy() == dict.fromkeys(domain.tasks, 0.5)
    assert whole.accuracy() == everything
    assert (half.bytes, whole.bytes) == (4 * 30, 4 * 60)


@pytest.mark.parametrize("name", ["linear", "TSV-M", "FR normalized", "Frank-Wolfe hard", "Frank-Wolfe soft"])
def test_rows_merge_and_are_kept(tmp_path: Path, name: str) -> None:
    domain = FakeDomain(tmp_path / "models")
    table = Table(domain, Store(tmp_path / "store"))
    cell = table.backbone(BY_NAME[name], 0)
    assert set(cell.right) == set(domain.tasks)
    assert len(list((tmp_path / "store" / "backbones").iterdir())) == 1


def test_irrelevant_models_hurt_a_sum_and_not_frank_wolfe(tmp_path: Path) -> None:
    domain = FakeDomain(tmp_path / "models")
    curves = scaling_curves(domain, Store(tmp_path / "store"), 0, lambda _: None)
    assert [point["extra"] for point in curves["irrelevant"]] == [0, 4, 8, 16]
    assert [point["models"] for point in curves["relevant"]] == [1, 2, 4, 5, 6]
    first, last = curves["irrelevant"][0], curves["irrelevant"][-1]
    assert last["task arithmetic 0.3"] < first["task arithmetic 0.3"]
    for variant in ("Frank-Wolfe hard", "Frank-Wolfe soft"):
        assert last[variant] == first[variant] > 0
