import pytest
import torch

from merge.bundle import Expert, SparseDelta
from merge.inspect.similarity import compare_experts, cosines


def expert(name: str, index: list[list[int]], value: list[list[float]]) -> Expert:
    delta = SparseDelta(torch.tensor(index, dtype=torch.uint16), torch.tensor(value, dtype=torch.bfloat16))
    return Expert(name, "d", 0.1, {"w": delta}, {})


def test_experts_by_hand() -> None:
    # The second shares one of two places with the first, with the opposite sign; its other entry is padding.
    a = expert("a", [[0, 3]], [[3.0, 4.0]])
    b = expert("b", [[3, 3]], [[-2.0, 0.0]])
    c = expert("c", [[1, 2]], [[1.0, 1.0]])
    cosine, overlap = compare_experts({"a": a, "b": b, "c": c})
    assert cosine.names == ("a", "b", "c")
    assert cosine.values[0] == pytest.approx((1.0, -0.8, 0.0))
    assert overlap.values[0] == pytest.approx((1.0, 1.0, 0.0))
    assert overlap.values[2] == pytest.approx((0.0, 0.0, 1.0))
    assert [[row[i] for row in cosine.values] for i in range(3)] == [list(row) for row in cosine.values]


def test_experts_of_different_weights_have_nothing_in_common() -> None:
    a, b = expert("a", [[0]], [[1.0]]), expert("b", [[0]], [[1.0]])
    b = Expert("b", "d", 0.1, {"other": b.sparse["w"]}, {})
    cosine, overlap = compare_experts({"a": a, "b": b})
    assert cosine.values[0][1] == overlap.values[0][1] == 0.0


def test_cosines_are_of_all_matrices_as_one_vector() -> None:
    torch.manual_seed(0)
    sets = {name: {m: torch.randn(3, 4) for m in "xy"} for name in "ab"}
    table = cosines(["a", "b"], ["x", "y"], lambda name, matrix: sets[name][matrix])
    flat = {name: torch.cat([sets[name][m].flatten() for m in "xy"]) for name in "ab"}
    assert table.values[0][1] == pytest.approx(float(torch.cosine_similarity(flat["a"], flat["b"], 0)), abs=1e-5)
    assert table.values[0][0] == pytest.approx(1.0)
