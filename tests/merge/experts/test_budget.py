import pytest
import torch

from merge.experts.budget import Curve, price, shared, spent
from merge.experts.entry_bytes import density_for, sparse_bytes


def curve(*gain: float, cost: int = 10, fixed: int = 0) -> Curve:
    return Curve(torch.tensor(gain, dtype=torch.float64), cost, fixed)


def test_what_removes_most_for_its_bytes_is_bought_first() -> None:
    curves = {"a": curve(9, 4, 1), "b": curve(8, 7, 6), "wide": curve(20, 1, cost=40)}
    assert shared(curves, 40) == {"a": 1, "b": 3, "wide": 0}
    assert shared(curves, 90) == {"a": 2, "b": 3, "wide": 1}
    assert spent(curves, shared(curves, 90)) == 90
    assert shared(dict(reversed(curves.items())), 40) == shared(curves, 40)


def test_a_smaller_piece_fills_what_a_larger_one_leaves() -> None:
    curves = {"small": curve(3, 2, 1), "wide": curve(100, cost=50)}
    assert shared(curves, 45) == {"small": 3, "wide": 0}
    assert shared(curves, 60) == {"small": 1, "wide": 1}


def test_nothing_is_bought_beyond_the_budget_or_the_curve() -> None:
    assert shared({"a": curve(5, 4)}, 9) == {"a": 0}
    assert shared({"a": curve(5, 4)}, 900) == {"a": 2}
    assert shared({}, 900) == {}
    assert shared({"a": Curve(torch.empty(0, dtype=torch.float64), 10)}, 900) == {"a": 0}


def test_the_first_piece_pays_what_is_fixed() -> None:
    curves = {"a": curve(5, 4, fixed=8)}
    assert [shared(curves, room)["a"] for room in (17, 18, 27, 28)] == [0, 1, 1, 2]
    assert spent(curves, {"a": 2}) == 28


def test_the_price_is_that_of_the_last_piece_and_worth_is_what_exceeds_it() -> None:
    curves = {"a": curve(9, 4, 1), "b": curve(8, 7, 6)}
    assert price(curves, shared(curves, 40)) == pytest.approx(0.6)
    assert price(curves, shared(curves, 1000)) == 0
    assert curves["b"].worth(0.6) == pytest.approx(2 + 1)
    assert curve(9, fixed=20).worth(0.5) == 0


@pytest.mark.parametrize("storage", ["int8", "bf16"])
def test_a_density_uses_its_budget_and_no_more(storage: str) -> None:
    shapes = [(64, 256), (256, 64)]
    for room in (3000, 9000):
        density = density_for(shapes, room, storage)  # type: ignore[arg-type]
        assert 0.5 * room < sparse_bytes(shapes, density, storage) <= room  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leaves 100 bytes for the entries, and one in each row takes"):
        density_for(shapes, 100, storage)  # type: ignore[arg-type]
