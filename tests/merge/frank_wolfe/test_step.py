import math

import pytest

from merge.frank_wolfe.step import EVALUATIONS, line_search, scheduled_step


@pytest.mark.parametrize(("t", "classic"), [(0, 1.0), (1, 2 / 3), (2, 0.5), (8, 0.2), (98, 0.02)])
def test_schedules(t: int, classic: float) -> None:
    assert scheduled_step("classic", t, 0.1) == pytest.approx(classic, rel=1e-15)
    assert scheduled_step("scaled", t, 0.1) == pytest.approx(0.1 * classic, rel=1e-15)


@pytest.mark.parametrize(("minimum", "expected"), [(0.3, 0.3), (0.004, 0.004), (1.0, 1.0), (1.7, 1.0)])
def test_line_search_is_exact_on_a_parabola(minimum: float, expected: float) -> None:
    def parabola(step: float) -> float:
        return 5 + 2 * (step - minimum) ** 2

    found = line_search(parabola, parabola(0), -4 * minimum)
    assert found == pytest.approx(expected, rel=0.05 if minimum < 0.01 else 1e-9)


def test_line_search_never_goes_up() -> None:
    assert line_search(lambda step: 1 + step, 1.0, -0.5) == 0.0
    assert line_search(lambda step: 1 - step, 1.0, 0.5) == 0.0


def test_line_search_survives_an_overflow() -> None:
    def loss(step: float) -> float:
        return math.inf if step > 0.5 else (step - 0.05) ** 2

    assert line_search(loss, loss(0), -0.1) == pytest.approx(0.05, rel=0.06)


def test_line_search_is_bounded() -> None:
    tried: list[float] = []

    def loss(step: float) -> float:
        tried.append(step)
        return math.nan

    assert line_search(loss, 1.0, -1.0) == 0.0
    assert len(tried) == EVALUATIONS
