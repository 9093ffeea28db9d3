import pytest
import torch

from merge.methods.dare import keep_mask
from tests.merge.methods.vectors import bound, random_vectors, stream

SHAPE = (40, 50)
VECTORS = random_vectors(SHAPE, 3)
BASE = random_vectors(SHAPE, 1, seed=9)["task0"]


def dropped(task: str, density: float, name: str = "w", seed: int = 0) -> torch.Tensor:
    return VECTORS[task] * keep_mask(SHAPE, density, seed, task, name) / density


def test_linear_is_the_weighted_sum_of_what_is_kept() -> None:
    by_task = {"task1": {"weight": 2.0, "density": 0.1}}
    merged = bound("dare_linear", by_task, weight=0.5, density=0.4, **{"lambda": 3.0})("w", BASE, stream(VECTORS))
    expected = 0.5 * dropped("task0", 0.4) + 2 * dropped("task1", 0.1) + 0.5 * dropped("task2", 0.4)
    torch.testing.assert_close(merged, BASE + 3 * expected)


def test_without_rescaling_kept_entries_stay_as_they_are() -> None:
    merged = bound("dare_linear", weight=1.0, density=0.4, rescale=False)("w", BASE, stream(VECTORS))
    torch.testing.assert_close(merged, BASE + sum(0.4 * dropped(task, 0.4) for task in VECTORS))


def test_ties_elects_signs_among_what_is_kept() -> None:
    by_task = {"task2": {"weight": 0.5}}
    kept = {task: dropped(task, 0.4) for task in VECTORS}
    weight = {"task0": 1.0, "task1": 1.0, "task2": 0.5}
    positive = sum((weight[task] * kept[task] for task in kept), torch.zeros(SHAPE)) >= 0
    agrees = {task: (kept[task] != 0) & ((kept[task] > 0) == positive) for task in kept}
    total = sum((weight[task] * kept[task] * agrees[task] for task in kept), torch.zeros(SHAPE))
    count = sum((weight[task] * agrees[task].double() for task in kept), torch.zeros(SHAPE))
    summed = bound("dare_ties", by_task, density=0.4, normalize=False)("w", BASE, stream(VECTORS))
    torch.testing.assert_close(summed, BASE + total)
    averaged = bound("dare_ties", by_task, density=0.4)("w", BASE, stream(VECTORS))
    torch.testing.assert_close(averaged, BASE + total / count.where(count > 0, 1.0))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_about_the_density_is_kept(density: float) -> None:
    fraction = float(keep_mask((1000, 1000), density, 0, "task", "w").double().mean())
    assert fraction == pytest.approx(density, abs=5e-3)


def test_rescaling_keeps_the_expectation() -> None:
    merge = [bound("dare_linear", weight=1.0, density=0.5, seed=seed) for seed in range(400)]
    one = {"task0": VECTORS["task0"]}
    mean = sum((run("w", BASE, stream(one)) - BASE for run in merge), torch.zeros(SHAPE)) / len(merge)
    # the mean of 400 draws of {0, 2τ} has a deviation of |τ| / 20
    assert ((mean - VECTORS["task0"]) / VECTORS["task0"]).abs().max() < 5 / 20


def test_masks_depend_on_seed_task_and_tensor_and_on_nothing_else() -> None:
    mask = keep_mask(SHAPE, 0.5, 0, "a", "w")
    torch.rand(7)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(mask, keep_mask(SHAPE, 0.5, 0, "a", "w"))
    finally:
        torch.set_num_threads(threads)
    for other in ((1, "a", "w"), (0, "b", "w"), (0, "a", "v"), (0, "aw", "")):
        assert not torch.equal(mask, keep_mask(SHAPE, 0.5, *other))


def test_a_known_mask() -> None:
    # Fixed here so that a recipe merges to the same bytes with every later version.
    assert keep_mask((2, 8), 0.5, 0, "task", "norm").int().tolist() == [
        [1, 0, 1, 0, 0, 1, 1, 1],
        [1, 0, 0, 0, 1, 0, 0, 0],
    ]


def test_what_a_low_density_keeps_a_higher_one_keeps_too() -> None:
    low, high = (keep_mask(SHAPE, density, 0, "a", "w") for density in (0.2, 0.6))
    assert bool((high | ~low).all())


def test_other_tasks_do_not_change_a_mask() -> None:
    alone = bound("dare_linear", density=0.5)("w", BASE, stream({"task1": VECTORS["task1"]})) - BASE
    silent = {**{task: torch.zeros(SHAPE).double() for task in VECTORS}, "task1": VECTORS["task1"]}
    torch.testing.assert_close(bound("dare_linear", density=0.5)("w", BASE, stream(silent)) - BASE, alone)
