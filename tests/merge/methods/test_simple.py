"""linear, task_arithmetic and ties on numbers small enough to check by hand."""

from itertools import pairwise

import pytest
import torch
from torch import tensor

from merge.methods.ties import find_cut
from tests.merge.methods.vectors import bound, stream

BASE = tensor([1.0, 1.0, 1.0, 1.0])
VECTORS = {"a": tensor([4.0, -1.0, 2.0, 0.0]), "b": tensor([2.0, 3.0, -6.0, 0.0])}


def test_linear_averages_the_fine_tunes() -> None:
    merged = bound("linear", {"a": {"weight": 3.0}})("w", BASE, stream(VECTORS))
    torch.testing.assert_close(merged, (3 * (BASE + VECTORS["a"]) + (BASE + VECTORS["b"])) / 4)
    summed = bound("linear", {"a": {"weight": 3.0}}, normalize=False)("w", BASE, stream(VECTORS))
    torch.testing.assert_close(summed, 3 * (BASE + VECTORS["a"]) + (BASE + VECTORS["b"]))


def test_linear_names_weights_that_cancel() -> None:
    with pytest.raises(ValueError, match="the weights sum to 0"):
        bound("linear", {"a": {"weight": -1.0}})("w", BASE, stream(VECTORS))


def test_task_arithmetic_adds() -> None:
    merged = bound("task_arithmetic", {"b": {"weight": 1.0}}, **{"lambda": 2.0})("w", BASE, stream(VECTORS))
    torch.testing.assert_close(merged, BASE + 2 * (0.3 * VECTORS["a"] + VECTORS["b"]))


def test_ties_trims_elects_and_averages() -> None:
    merged = bound("ties", density=0.5)("w", BASE, stream(VECTORS)) - BASE
    # kept: a = [4, 0, 2, 0], b = [0, 3, -6, 0]; signs of the sums [4, 3, -4, 0]; only what agrees is averaged
    torch.testing.assert_close(merged, tensor([4.0, 3.0, -6.0, 0.0]))
    summed = bound("ties", {"a": {"weight": 2.0}}, density=1.0, normalize=False)("w", BASE, stream(VECTORS)) - BASE
    torch.testing.assert_close(summed, tensor([10.0, 3.0, -6.0, 0.0]))


def test_ties_with_negative_weights_elects_among_the_weighted_entries() -> None:
    """The values follow mergekit's formula: sign(w τ) votes, Σ w τ of those that agree, over their Σ w."""
    alone = bound("ties", {"a": {"weight": -0.5}}, density=1.0, normalize=False)
    torch.testing.assert_close(alone("w", BASE, stream({"a": VECTORS["a"]})) - BASE, -0.5 * VECTORS["a"])
    # weighted: a = [4, -1, 2, 0], b = [-1, -1.5, 3, 0]; signs of the sums [3, -2.5, 5, 0] are +, -, +
    by_task = {"b": {"weight": -0.5}}
    summed = bound("ties", by_task, density=1.0, normalize=False)("w", BASE, stream(VECTORS)) - BASE
    torch.testing.assert_close(summed, tensor([4.0, -2.5, 5.0, 0.0]))
    averaged = bound("ties", by_task, density=1.0)("w", BASE, stream(VECTORS)) - BASE
    torch.testing.assert_close(averaged, tensor([4.0, -2.5 / 0.5, 5 / 0.5, 0.0]))
    dropped = bound("dare_ties", by_task, density=1.0, normalize=False)("w", BASE, stream(VECTORS)) - BASE
    torch.testing.assert_close(dropped, summed)


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trim_is_a_stable_sort_cut_off(density: float, dtype: torch.dtype) -> None:
    # few distinct values, so that the cut goes through equal ones
    vector = torch.randint(-6, 7, (30, 20), generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = vector.reshape(-1).abs().argsort(descending=True, stable=True)[: max(1, int(density * 600))]
    expected = torch.zeros(600, dtype=dtype)
    expected[kept] = vector.reshape(-1)[kept]
    cut = find_cut(vector.reshape(-1), density)
    for edges in ((0, 600), (0, 7, 100, 101, 599, 600)):
        pieces = [cut.trim(vector.reshape(-1), slice(a, b)) for a, b in pairwise(edges)]
        assert torch.equal(torch.cat(pieces), expected)


def test_ties_keeps_one_entry_at_least() -> None:
    merged = bound("ties", density=0.01)("w", BASE, stream({"a": VECTORS["a"]})) - BASE
    torch.testing.assert_close(merged, tensor([4.0, 0.0, 0.0, 0.0]))
