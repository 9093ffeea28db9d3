"""What every method must satisfy."""

import pytest
import torch

from merge.methods import METHODS, TaskVectors
from tests.merge.methods.vectors import bound, random_vectors, stream

EVERY = sorted(METHODS)
WITHOUT_WEIGHTS = ("base", "karcher", "sce")
PAIRS = ("nuslerp",)
"""Methods that merge two models."""


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7,)])
def test_fine_tunes_equal_to_the_base_give_the_base(name: str, shape: tuple[int, ...]) -> None:
    base = random_vectors(shape, 1)["task0"]
    nothing = {task: torch.zeros(shape, dtype=torch.float64) for task in ("a", "b")}
    assert torch.equal(bound(name)("w", base, stream(nothing)), base)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in WITHOUT_WEIGHTS])
def test_the_order_of_the_tasks_does_not_move_a_bit(name: str) -> None:
    base = random_vectors((12, 8), 1, seed=1, dtype=torch.float32)["task0"]
    vectors = random_vectors((12, 8), 2 if name in PAIRS else 5, dtype=torch.float32)
    by_task = {task: {"weight": 0.1 * (i + 1)} for i, task in enumerate(vectors)}
    merge = bound(name, by_task)
    forward, backward = (merge("w", base, stream(vectors, order)) for order in (list(vectors), list(vectors)[::-1]))
    assert torch.equal(forward, backward)


@pytest.mark.parametrize("name", EVERY)
def test_the_inputs_are_left_alone(name: str) -> None:
    base = random_vectors((6, 6), 1, seed=1)["task0"]
    vectors = random_vectors((6, 6), 2)
    before = {task: vector.clone() for task, vector in vectors.items()}
    kept = base.clone()
    bound(name)("w", base, TaskVectors(list(vectors), vectors.__getitem__))
    assert torch.equal(base, kept)
    assert all(torch.equal(vectors[task], before[task]) for task in vectors)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("linear", {}),
        ("task_arithmetic", {"weight": 1.0}),
        ("ties", {"density": 1.0}),
        ("fr", {"filter": "normalized", "d0": 0.0, "lambda": 1.0}),
        ("fr", {"r": 1.0, "lambda": 1.0}),
        ("tsv_m", {}),
        ("knots", {"density": 1.0}),
        ("dare_linear", {"weight": 1.0, "density": 1.0}),
        ("dare_ties", {"density": 1.0}),
        ("breadcrumbs", {"density": 1.0}),
        ("breadcrumbs_ties", {"density": 1.0}),
        ("della", {"density": 1.0}),
        ("della_linear", {"weight": 1.0, "density": 1.0}),
        ("sce", {}),
        ("karcher", {}),
    ],
)
@pytest.mark.parametrize("shape", [(8, 8), (5, 8), (9,)])
def test_one_model_with_weight_one_gives_itself_back(
    name: str, parameters: dict[str, object], shape: tuple[int, ...]
) -> None:
    base = random_vectors(shape, 1, seed=1, dtype=torch.float32)["task0"]
    tune = base + random_vectors(shape, 1, seed=2, dtype=torch.float32)["task0"]
    vectors = {"task": tune.double() - base.double()}
    merged = bound(name, **parameters)("w", base.double(), stream(vectors)).float()
    torch.testing.assert_close(merged, tune, rtol=0, atol=1e-6)
    if name in {"linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"}:
        assert torch.equal(merged, tune)
