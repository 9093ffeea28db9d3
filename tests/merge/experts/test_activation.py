from itertools import combinations

import pytest
import torch
from torch import Tensor

from merge.experts import activation
from merge.experts.activation import fit_values, greedy_support
from merge.experts.magnitude import largest_entries

N, K = 12, 20


@pytest.fixture
def residual() -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def gram() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, K, generator=generator) @ torch.randn(K, K, generator=generator)
    return x.T @ x


def error(residual: Tensor, gram: Tensor, index: Tensor, value: Tensor) -> Tensor:
    left = residual - torch.zeros_like(residual).scatter(1, index, value)
    return torch.einsum("nk,kl,nl->n", left.double(), gram.double(), left.double())


@pytest.mark.parametrize("rounds", [1, 3, 16])
@pytest.mark.parametrize("k", [1, 4, 7, K])
def test_supports_are_distinct_and_ascend(residual: Tensor, gram: Tensor, k: int, rounds: int) -> None:
    index, value = greedy_support(residual @ gram, gram, k, rounds)
    assert index.shape == value.shape == (N, k)
    assert bool((index.diff(dim=1) > 0).all())


def test_everything_kept_is_the_residual(residual: Tensor, gram: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "RIDGE", 0.0)
    _, value = greedy_support(residual @ gram, gram, K)
    torch.testing.assert_close(value, residual, rtol=1e-2, atol=1e-2)


def test_white_inputs_give_the_largest_entries(residual: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "RIDGE", 0.0)
    index, value = greedy_support(residual, torch.eye(K), 5)
    assert torch.equal(index, largest_entries(residual, 5))
    torch.testing.assert_close(value, residual.gather(1, index))


def test_the_first_entry_is_the_best_there_is(residual: Tensor, gram: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "RIDGE", 0.0)
    index, value = greedy_support(residual @ gram, gram, 1)
    found = error(residual, gram, index, value)
    for column in range(K):
        other = torch.full((N, 1), column)
        assert bool((found <= error(residual, gram, other, fit_values(residual @ gram, gram, other)) * 1.0001).all())


def test_greedy_is_near_the_best_pair_and_beats_magnitude(residual: Tensor, gram: Tensor) -> None:
    index, value = greedy_support(residual @ gram, gram, 2)
    found = error(residual, gram, index, value)
    pairs = torch.tensor(list(combinations(range(K), 2)))
    best = torch.stack([
        error(residual, gram, pair.expand(N, 2), fit_values(residual @ gram, gram, pair.expand(N, 2))) for pair in pairs
    ]).amin(0)  # fmt: skip
    largest = largest_entries(residual, 2)
    assert float(found.sum()) < 1.2 * float(best.sum())
    assert float(found.sum()) < float(error(residual, gram, largest, residual.gather(1, largest)).sum())


def test_more_entries_never_hurt(residual: Tensor, gram: Tensor) -> None:
    errors = [float(error(residual, gram, *greedy_support(residual @ gram, gram, k)).sum()) for k in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)


def test_chunks_do_not_change_the_values(residual: Tensor, gram: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    index = largest_entries(residual, 4)
    whole = fit_values(residual @ gram, gram, index)
    monkeypatch.setattr(activation, "CHUNK", 5 * 4 * 4)
    torch.testing.assert_close(fit_values(residual @ gram, gram, index), whole)


def test_inputs_that_are_never_active_are_not_chosen(residual: Tensor, gram: Tensor) -> None:
    gram = gram.clone()
    gram[:10] = 0
    gram[:, :10] = 0
    index, value = greedy_support(residual @ gram, gram, 3)
    assert int(index.min()) >= 10
    assert bool(torch.isfinite(value).all())
