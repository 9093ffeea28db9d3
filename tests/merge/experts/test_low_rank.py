import pytest
import torch

from merge.experts.low_rank import direction_bytes, directions, leading_svd, metric_of, stored
from merge.methods.vectors import Factors


def matrix(rows: int, columns: int, decay: float = 0.8, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values fall geometrically."""
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, size, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(columns, size, generator=generator)).Q
    return (u * decay ** torch.arange(size)) @ v.T


def inputs(columns: int, count: int = 400, seed: int = 1) -> torch.Tensor:
    """Inputs of very different power."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) * 0.7 ** torch.arange(columns)[:, None]
    return torch.randn(count, columns, generator=generator) @ mix


def test_without_a_metric_it_is_the_truncated_svd() -> None:
    change = matrix(20, 30)
    found = directions(change, 5)
    u, s, vh = torch.linalg.svd(change, full_matrices=False)
    torch.testing.assert_close(found.b @ found.a, (u[:, :5] * s[:5]) @ vh[:5])
    torch.testing.assert_close(found.gain, s[:5].double().square())
    left = (change - found.b[:, :2] @ found.a[:2]).square().sum()
    torch.testing.assert_close(left.double(), change.double().square().sum() - found.gain[:2].sum(), rtol=1e-4, atol=0)


def test_a_metric_gives_the_least_error_of_the_output_and_its_gain() -> None:
    change, x = matrix(20, 12, 0.95), inputs(12)
    gram = x.T @ x / len(x)
    found = directions(change, 3, metric_of(gram))
    plain = directions(change, 3)

    def error(approximation: torch.Tensor) -> float:
        return float(((change - approximation) @ x.T).square().sum() / len(x))

    assert error(found.b @ found.a) < 0.5 * error(plain.b @ plain.a)
    removed = error(torch.zeros_like(change)) - error(found.b @ found.a)
    assert float(found.gain.sum()) == pytest.approx(removed, rel=0.05)  # the ridge makes the difference


def test_a_metric_is_a_root_of_the_moments_even_where_they_have_none() -> None:
    x = inputs(12, count=5)
    gram = x.T @ x / len(x)
    metric = metric_of(gram)
    torch.testing.assert_close(metric.undone(metric.root), torch.eye(12), rtol=0, atol=1e-4)
    apart = (metric.root @ metric.root.T - gram).norm() / gram.norm()
    assert apart < 0.1
    silent = metric_of(torch.zeros(4, 4))
    assert bool(torch.isfinite(silent.undone(torch.ones(1, 4))).all())


@pytest.mark.parametrize("with_metric", [False, True])
def test_factors_give_what_their_product_gives(with_metric: bool) -> None:
    left, right = torch.randn(20, 4), torch.randn(4, 12)
    x = inputs(12)
    metric = metric_of(x.T @ x / len(x)) if with_metric else None
    whole, factors = directions(left @ right, 9, metric), directions(Factors(left, right), 9, metric)
    assert factors.gain.shape == (4,)
    torch.testing.assert_close(factors.gain, whole.gain[:4], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(factors.b @ factors.a, left @ right, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(factors.b[:, :2] @ factors.a[:2], whole.b[:, :2] @ whole.a[:2], rtol=1e-2, atol=1e-2)


def test_large_matrices_are_decomposed_by_subspace_iteration() -> None:
    change = matrix(160, 120, 0.9)
    u, s, vh = leading_svd(change, 8)
    exact = torch.linalg.svd(change, full_matrices=False)
    torch.testing.assert_close(s, exact.S[:8], rtol=1e-4, atol=0)
    torch.testing.assert_close((u * s) @ vh, (exact.U[:, :8] * exact.S[:8]) @ exact.Vh[:8], rtol=0, atol=1e-4)
    again = leading_svd(change, 8)
    assert all(torch.equal(one, other) for one, other in zip((u, s, vh), again, strict=True))


def test_nothing_of_a_zero_matrix_or_beyond_its_rank_is_returned() -> None:
    assert directions(torch.zeros(6, 5), 3).gain.shape == (0,)
    assert directions(torch.outer(torch.ones(6), torch.ones(5)), 3).gain.shape == (1,)
    assert directions(Factors(torch.zeros(6, 0), torch.zeros(0, 5)), 3).gain.shape == (0,)


@pytest.mark.parametrize(("storage", "most"), [("int8", 0.02), ("bf16", 0.01)])
def test_stored_factors_are_close_and_of_the_bytes_that_were_reckoned(storage: str, most: float) -> None:
    found = directions(matrix(40, 30), 6)
    part = stored(found.b, found.a, storage)  # type: ignore[arg-type]
    product = found.b @ found.a
    assert (part.dense(torch.float32) - product).norm() < most * product.norm()
    assert part.nbytes == 6 * direction_bytes(40, 30, storage)  # type: ignore[arg-type]
    assert part.scale.dtype == torch.float32
