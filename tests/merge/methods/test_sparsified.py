"""Breadcrumbs, DELLA, and what mergekit's parameters of TIES and DARE do."""

import pytest
import torch
from torch import Tensor

from merge.methods.breadcrumbs import _kept
from merge.methods.della import keep_probabilities
from tests.merge.methods.vectors import bound, random_vectors, stream

BASE = random_vectors((20, 30), 1, seed=9)["task0"]
VECTORS = random_vectors((20, 30), 3)


def ranks(vector: Tensor) -> Tensor:
    return vector.abs().flatten().argsort().argsort().view(vector.shape)


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.01), (0.2, 0.1), (0.95, 0.1), (0.99, 0.2)])
def test_breadcrumbs_keep_what_lies_between(density: float, gamma: float) -> None:
    vector = VECTORS["task0"]
    size = vector.numel()
    kept = _kept(vector, density, gamma)
    middle = int(density * size)
    top = min(int(gamma * size), size - middle)
    place = ranks(vector)
    expected = (place >= size - top - middle) & (place < size - top)
    assert torch.equal(kept, vector * expected)


def test_breadcrumbs_are_summed_or_elected() -> None:
    given = {"density": 0.6, "gamma": 0.05}
    kept = torch.stack([_kept(vector, 0.6, 0.05) for vector in VECTORS.values()])
    merged = bound("breadcrumbs", **given, **{"lambda": 2.0})("w", BASE, stream(VECTORS))
    torch.testing.assert_close(merged, BASE + 2 * kept.sum(0))
    mean = bound("breadcrumbs", **given, normalize=True)("w", BASE, stream(VECTORS))
    torch.testing.assert_close(mean, BASE + kept.mean(0))
    agrees = (kept != 0) & ((kept > 0) == (kept.sum(0) >= 0))
    elected = bound("breadcrumbs_ties", **given)("w", BASE, stream(VECTORS))
    torch.testing.assert_close(elected, BASE + (kept * agrees).sum(0))


def test_della_keeps_large_entries_more_often() -> None:
    vector = torch.tensor([[3.0, -1.0, 0.5, 2.0], [0.1, 0.2, -0.3, 0.4]])
    expected = torch.tensor([[0.7, 0.5 - 0.2 / 3, 0.3, 0.5 + 0.2 / 3], [0.3, 0.5 - 0.2 / 3, 0.5 + 0.2 / 3, 0.7]])
    torch.testing.assert_close(keep_probabilities(vector, 0.5, 0.2), expected)
    torch.testing.assert_close(keep_probabilities(vector[0], 0.5, 0.2), expected[0])


def test_della_is_the_sum_in_expectation() -> None:
    found = [
        bound("della_linear", weight=1.0, density=0.6, seed=seed)("w", BASE, stream(VECTORS)) for seed in range(400)
    ]
    mean = torch.stack(found).mean(0) - BASE
    total = torch.stack(list(VECTORS.values())).sum(0)
    assert float((mean - total).norm() / total.norm()) < 0.1


def test_della_without_rescaling_only_drops() -> None:
    given = {"weight": 1.0, "density": 0.6, "rescale": False}
    vector = {"a": VECTORS["task0"]}
    merged = bound("della_linear", **given)("w", BASE * 0, stream(vector))
    assert torch.equal(merged[merged != 0], vector["a"][merged != 0])
    assert 0.5 < float((merged != 0).double().mean()) < 0.7


def test_dellas_probabilities_are_probabilities() -> None:
    with pytest.raises(ValueError, match="density 0.9 and epsilon 0.15 must keep"):
        bound("della", density=0.9)("w", BASE, stream(VECTORS))


def test_ties_rescales_to_the_size_before_trimming() -> None:
    vector = {"a": VECTORS["task0"]}
    given = {"density": 0.3, "normalize": False}
    trimmed = bound("ties", **given)("w", BASE * 0, stream(vector))
    rescaled = bound("ties", **given, rescale=True)("w", BASE * 0, stream(vector))
    torch.testing.assert_close(rescaled, trimmed * (vector["a"].abs().sum() / trimmed.abs().sum()))


def test_dare_divides_by_the_weights() -> None:
    given = {"weight": 2.0, "density": 1.0}
    merged = bound("dare_linear", **given, normalize=True)("w", BASE, stream(VECTORS))
    torch.testing.assert_close(merged, BASE + torch.stack(list(VECTORS.values())).mean(0))
