import pytest

from benchmarks.quality.report import Spread, entry, markdown
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
    assert Spread(0.9876, 0.0012).percent() == "98.8 ± 0.1"


def test_the_table_has_a_column_for_each_kind_of_expert() -> None:
    rows = [
        entry("x", None, OWN, OWN, (1000, 400)),
        entry("x", Cut("data-free", 0.01), FOUND, OWN, (1000, 400)),
        entry("y", Cut("calibrated", 0.005, "int8"), OWN, OWN, (1000, 400)),
    ]
    lines = markdown({"rows": rows}).splitlines()
    assert lines[0] == "| backbone | backbone alone | calibrated 0.5 % int8 | data-free 1 % |"
    assert lines[2] == "| x | 100.0 ± 0.0 |  | 62.5 ± 17.7 |"
    assert lines[3] == "| y |  | 100.0 ± 0.0 |  |"
