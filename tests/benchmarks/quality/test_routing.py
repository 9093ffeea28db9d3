import pytest

from benchmarks.quality.domain import Requests
from benchmarks.quality.routing import Routing, routed, routed_accuracy
from benchmarks.quality.table import Cell
from merge.router.quality import area_under_curve, calibration_error


def test_calibration_error_of_closed_cases() -> None:
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([0.95] * 4, [True, True, True, False]) == pytest.approx(0.2)
    assert calibration_error([0.55, 0.95], [False, True]) == pytest.approx((0.55 + 0.05) / 2)


def test_area_under_curve_counts_ties_half() -> None:
    assert area_under_curve([0.9, 0.8], [0.1, 0.2]) == 1
    assert area_under_curve([0.5], [0.5]) == 0.5
    assert area_under_curve([0.1, 0.9], [0.5]) == 0.5


def test_a_wrong_expert_counts_as_wrong_and_none_as_the_backbone() -> None:
    routing = Routing({"a": ["a", "b", "", "", "a"]}, 0.4, 0.0, None, None, None, 0.1)
    found = routed_accuracy(routing, Cell({"a": "11110"}, 8), Cell({"a": "11011"}, 0))
    assert found == {"a": (1 + 0 + 0 + 1 + 0) / 5}


def test_a_router_of_clear_tasks_is_right_and_knows_strangers() -> None:
    numbers, animals = (
        [f"add {i} and {i + 3}" for i in range(20)],
        [f"which animal says {w}" for w in "abcdefghijklmnop"],
    )
    requests = Requests(
        {"sums": numbers[:12], "animals": animals[:10]},
        {"sums": numbers[12:], "animals": animals[10:]},
        ["Xylophones quietly zigzag", "Ruby mountains overlook jars"],
    )
    found = routed(requests)
    assert found.accuracy == 1
    assert found.auroc == 1
    assert found.ece_with_foreign is not None
    assert found.chosen["sums"] == ["sums"] * 8
    assert found.p99_ms > 0
