"""SCE, Karcher means and NuSLERP, against their formulas on whole stacks of vectors."""

import math

import pytest
import torch
from torch import Tensor

from tests.merge.methods.vectors import bound, random_vectors, stream

BASE = random_vectors((6, 8), 1, seed=9)["task0"]
VECTORS = random_vectors((6, 8), 3)
PAIR = {name: VECTORS[name] for name in ("task0", "task1")}


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_sce_selects_weights_and_erases(share: float) -> None:
    deltas = torch.stack(list(VECTORS.values()))
    if share < 1:
        variance = deltas.var(0, unbiased=False).flatten()
        chosen = torch.zeros_like(variance).index_fill(0, variance.topk(int(share * len(variance))).indices, 1.0)
        deltas = deltas * chosen.view(BASE.shape)
    weight = deltas.square().flatten(1).sum(1)
    weight = (weight / weight.sum())[:, None, None]
    agrees = (deltas != 0) & ((deltas > 0) == (deltas.sum(0) >= 0))
    divisor = (weight * agrees).sum(0)
    expected = BASE + (weight * agrees * deltas).sum(0) / divisor.masked_fill(divisor == 0, 1.0)
    merged = bound("sce", select_topk=share)("w", BASE, stream(VECTORS))
    torch.testing.assert_close(merged, expected)


def test_karchers_mean_of_two_is_halfway_along_the_arc() -> None:
    models = [BASE + vector for vector in PAIR.values()]
    units = [model / model.norm() for model in models]
    middle = units[0] + units[1]
    expected = middle / middle.norm() * (models[0].norm() + models[1].norm()) / 2
    torch.testing.assert_close(bound("karcher")("w", BASE, stream(PAIR)), expected)


def test_no_direction_is_nearer_to_all_than_karchers_mean() -> None:
    models = [BASE + vector for vector in VECTORS.values()]

    def distance(direction: Tensor) -> float:
        unit = direction / direction.norm()
        return sum(math.acos(float((unit * model / model.norm()).sum())) ** 2 for model in models)

    mean = bound("karcher", max_iter=50, tol=1e-12)("w", BASE, stream(VECTORS))
    best = distance(mean)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved = mean + 1e-3 * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        assert distance(moved) > best


@pytest.mark.parametrize(
    ("parameters", "dim"),
    [({}, None), ({"nuslerp_flatten": False}, 1), ({"nuslerp_flatten": False, "nuslerp_row_wise": True}, 0)],
)
def test_nuslerp_interpolates_along_the_arc(parameters: dict[str, bool], dim: int | None) -> None:
    one, other = PAIR.values()
    shape = one.shape
    if dim is None:
        one, other, dim = one.reshape(1, -1), other.reshape(1, -1), 1
    cosine = torch.cosine_similarity(one, other, dim=dim).unsqueeze(dim)
    angle = cosine.acos()
    expected = (torch.sin(0.25 * angle) * one + torch.sin(0.75 * angle) * other) / torch.sin(angle)
    by_task = {"task0": {"weight": 1.0}, "task1": {"weight": 3.0}}
    merged = bound("nuslerp", by_task, **parameters)("w", BASE, stream(PAIR))
    torch.testing.assert_close(merged, BASE + expected.reshape(shape))


def test_nuslerp_of_one_direction_is_linear() -> None:
    pair = {"a": VECTORS["task0"], "b": 3 * VECTORS["task0"]}
    torch.testing.assert_close(bound("nuslerp")("w", BASE, stream(pair)), BASE + 2 * VECTORS["task0"])


def test_nuslerp_takes_two_models() -> None:
    with pytest.raises(ValueError, match="interpolates two models; the recipe has 3"):
        bound("nuslerp")("w", BASE, stream(VECTORS))
