import pytest
import torch

from merge.experts.magnitude import (
    Magnitudes,
    code_factor,
    largest_entries,
    measure,
    paper_factors,
    usual_code_factor,
)


def test_largest_entries_of_each_row_ascend() -> None:
    vector = torch.tensor([[0.1, -3.0, 2.0, 0.0], [5.0, 0.0, 0.0, -6.0]])
    assert largest_entries(vector, 2).tolist() == [[1, 2], [0, 3]]


@pytest.mark.parametrize(("density", "factor"), [(0.01, 7.25), (0.02, 5.68), (0.1, 2.59)])
def test_code_factor_of_gaussian_entries(density: float, factor: float) -> None:
    vector = torch.randn(100, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    magnitudes = measure([vector], {5000: round(density * 5000)})
    # the closed form counts what lies above a threshold; per-row selection moves it by less than a percent
    assert code_factor(magnitudes, density) == pytest.approx(factor, rel=0.01)
    assert usual_code_factor(density) == pytest.approx(factor, rel=0.002)


def test_means_are_over_tensors_not_entries() -> None:
    magnitudes = Magnitudes()
    magnitudes.add(torch.tensor([[1.0, 3.0]]), torch.tensor([[1]]))
    magnitudes.add(torch.tensor([[2.0, 0.0, 0.0, 0.0], [6.0, 0.0, 0.0, 0.0]]), torch.tensor([[0], [0]]))
    assert magnitudes.overall == pytest.approx((2.0 + 1.0) / 2)
    assert magnitudes.kept == pytest.approx((3.0 + 4.0) / 2)


def test_paper_factor_divides_by_the_share() -> None:
    small, large = Magnitudes(), Magnitudes()
    small.add(torch.tensor([[1.0, 1.0]]), torch.tensor([[0]]))
    large.add(torch.tensor([[3.0, 3.0]]), torch.tensor([[0]]))
    factors = paper_factors({"a": small, "b": large}, 0.1)
    assert factors == {"a": pytest.approx(1.0 / 0.25), "b": pytest.approx(1.0 / 0.75)}


def test_an_unchanged_model_needs_no_factor() -> None:
    magnitudes = measure([torch.zeros(2, 2)], {2: 1})
    assert code_factor(magnitudes, 0.01) == 1.0
    assert paper_factors({"a": magnitudes}, 0.01) == {"a": 1.0}
