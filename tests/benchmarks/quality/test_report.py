import pytest

from benchmarks.quality.report import Spread, entry
from benchmarks.quality.table import Cell, Cut

OWN = [Cell({"a": "1111", "b": "1100"}, 0), Cell({"a": "1110", "b": "1111"}, 0)]
FOUND = [Cell({"a": "1100", "b": "1000"}, 10), Cell({"a": "1110", "b": "0011"}, 30)]


def test_averages_are_over_tasks_then_seeds_and_normalised_within_a_seed() -> None:
    line = entry("x", Cut("data-free", 0.01), FOUND, OWN, (1000, 400))
    assert line["average"]["mean"] == pytest.approx((0.375 + 0.625) / 2)
    assert line["normalized"]["mean"] == pytest.approx((0.5 + 0.75) / 2)
    assert line["normalized"]["spread"] == pytest.approx(0.25 / 2**0.5)
    assert line["tasks"]["b"] == {"accuracy": 0.375, "normalized": 0.5}
    assert (line["bytes"], line["share_of_backbone"], line["share_of_matrices"]) == (20, 0.02, 0.05)


def test_one_seed_has_no_spread() -> None:
    assert Spread.of([0.5]) == Spread(0.5, 0.0)
    assert Spread(0.9876, 0.0012).percent(3) == "98.8 ± 0.1"
    assert Spread(0.9876, 0.0).percent(1) == "98.8"
