import pytest
import torch

from merge.export import low_rank as module
from merge.export.low_rank import low_rank


def sparse(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(rows, columns, generator=generator)
    return matrix * (torch.rand(rows, columns, generator=generator) < 0.1)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_the_error_is_that_of_the_singular_values_left_out(shape: tuple[int, int]) -> None:
    matrix = sparse(*shape)
    values = torch.linalg.svdvals(matrix).double()
    for rank in (1, 4, 19):
        found = low_rank(matrix, rank)
        assert (found.a.shape, found.b.shape) == ((rank, shape[1]), (shape[0], rank))
        expected = float((values[rank:].square().sum() / values.square().sum()).sqrt())
        assert found.error == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert float((matrix - found.b @ found.a).norm() / matrix.norm()) == pytest.approx(
            found.error, rel=1e-3, abs=1e-5
        )


def test_more_rank_than_there_is_gives_the_matrix_back() -> None:
    matrix = sparse(6, 9)
    found = low_rank(matrix, 16)
    assert (found.a.shape, found.b.shape) == ((16, 9), (6, 16))
    torch.testing.assert_close(found.b @ found.a, matrix, atol=1e-5, rtol=0)
    assert found.error < 1e-5


def test_zeros_have_no_error() -> None:
    found = low_rank(torch.zeros(4, 5), 2)
    assert found.error == 0.0
    assert not (found.b @ found.a).any()


def test_random_projection_comes_close_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = sparse(120, 90)
    exact = low_rank(matrix, 8)
    monkeypatch.setattr(module, "EXACT", 1)
    state = torch.random.get_rng_state()
    projected = low_rank(matrix, 8)
    assert projected.error == pytest.approx(exact.error, rel=0.02)
    assert torch.equal(projected.a, low_rank(matrix, 8).a)
    assert torch.equal(state, torch.random.get_rng_state())
