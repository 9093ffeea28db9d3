from itertools import combinations

import pytest
import torch
from torch import Tensor

from merge.frank_wolfe import project_onto_simplex


def by_faces(point: Tensor) -> Tensor:
    """The nearest of the projections onto the faces' planes that lie in the simplex."""
    candidates = []
    for count in range(1, len(point) + 1):
        for face in combinations(range(len(point)), count):
            chosen = point[list(face)]
            chosen = chosen - (chosen.sum() - 1) / count
            if bool((chosen >= 0).all()):
                candidates.append(torch.zeros_like(point).index_put((torch.tensor(face),), chosen))
    return min(candidates, key=lambda candidate: float((candidate - point).square().sum()))


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_brute_force(scale: float) -> None:
    points = torch.randn(6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale
    found = project_onto_simplex(points)
    expected = torch.stack([by_faces(column) for column in points.T], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_what_is_not_allowed_is_left_out() -> None:
    points = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    allowed = torch.rand(5, 8, generator=torch.Generator().manual_seed(2)) < 0.5
    allowed[0] = True
    found = project_onto_simplex(points, allowed)
    for g in range(8):
        rows = allowed[:, g]
        torch.testing.assert_close(found[rows, g], by_faces(points[rows, g]), rtol=0, atol=1e-12)
        assert not found[~rows, g].any()


def test_a_point_of_the_simplex_stays() -> None:
    point = torch.tensor([[0.25], [0.0], [0.75]], dtype=torch.float64)
    assert torch.equal(project_onto_simplex(point), point)
    corner = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert torch.equal(project_onto_simplex(corner + torch.tensor([[0.0], [7.0]])), corner)
