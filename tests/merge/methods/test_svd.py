"""iso_c and tsv_m: the identities that define them."""

import torch

from merge.methods.tsv_m import polar
from tests.merge.methods.vectors import bound, random_vectors, stream

SHAPE = (10, 6)
BASE = torch.zeros(SHAPE, dtype=torch.float64)
VECTORS = random_vectors(SHAPE, 2)


def test_iso_c_has_a_flat_spectrum_with_the_sums_mean() -> None:
    merged = bound("iso_c", **{"lambda": 2.0})("w", BASE, stream(VECTORS))
    values = torch.linalg.svdvals(merged)
    expected = 2 * torch.linalg.svdvals(sum(VECTORS.values(), BASE)).mean()
    torch.testing.assert_close(values, expected.expand(6))


def test_tsv_m_of_orthogonal_tasks_is_their_truncated_sum() -> None:
    u, v = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for n in SHAPE)
    first = (u[:, :3] * torch.tensor([3.0, 2.0, 1.0]).double()) @ v[:, :3].T
    second = (u[:, 3:6] * torch.tensor([6.0, 5.0, 4.0]).double()) @ v[:, 3:6].T
    merged = bound("tsv_m")("w", BASE, stream({"a": first, "b": second}))
    torch.testing.assert_close(merged, first + second)


def test_tsv_m_makes_the_singular_vectors_orthogonal() -> None:
    basis = polar(torch.randn(10, 6, dtype=torch.float64))
    torch.testing.assert_close(basis.T @ basis, torch.eye(6, dtype=torch.float64))
    merged = bound("tsv_m")("w", BASE, stream(VECTORS))
    kept = torch.cat([torch.linalg.svdvals(vector)[:3] for vector in VECTORS.values()])
    torch.testing.assert_close(torch.linalg.svdvals(merged), kept.sort(descending=True).values)


def test_embeddings_and_vectors_are_averaged() -> None:
    mean = sum(VECTORS.values(), BASE) / 2
    for name in ("iso_c", "tsv_m"):
        torch.testing.assert_close(bound(name)("lm_head.weight", BASE, stream(VECTORS)), mean)
