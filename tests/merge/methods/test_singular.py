"""Spectral methods in the task vectors' own space: low rank, rounding, and another order of floating-point sums."""

import pytest
import torch
from torch import Tensor

from merge.methods import TaskVectors
from merge.methods.singular import Singular, of_matrix, of_product, of_sum, of_task, rounding
from merge.methods.vectors import ONE, Factors
from tests.merge.methods.vectors import bound, random_vectors, stream

SHAPE = (96, 160)
RANK = 6
TASKS = ("a", "b", "c")
BASE = random_vectors(SHAPE, 1, seed=9, dtype=torch.float32)["task0"] * 0.05
SPECTRAL = pytest.mark.parametrize("method", ["iso_c", "knots", "tsv_m"])


def low_rank(seed: int, size: float = 0.004) -> Factors:
    """Factors of a task vector that is as small beside the base as those of real LoRAs are."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(shape, generator=generator) for shape in ((SHAPE[0], RANK), (RANK, SHAPE[1])))
    return Factors(left * (size * 0.05 / RANK**0.5), right)


LORAS = {task: low_rank(seed) for seed, task in enumerate(TASKS)}


def as_factors(scale: float = 1.0) -> TaskVectors:
    """The LoRAs; task a's times `scale`."""

    def factors(task: str) -> Factors:
        return Factors(LORAS[task].left * (scale if task == "a" else 1.0), LORAS[task].right)

    def read(_: str) -> Tensor:
        raise AssertionError("a LoRA was read as a dense matrix")

    return TaskVectors(TASKS, read, factors=factors)


def as_stored(dtype: torch.dtype, scale: float = 1.0) -> TaskVectors:
    """The LoRAs, added to the base and rounded, as `merge_and_unload` and `save_pretrained` leave them."""
    origin = BASE.to(dtype)

    def read(task: str) -> Tensor:
        exact = LORAS[task].left.double() @ LORAS[task].right.double() * (scale if task == "a" else 1.0)
        return (origin.double() + exact).to(dtype).float() - origin.float()

    return TaskVectors(TASKS, read, stored=lambda _: dtype)


def change(method: str, vectors: TaskVectors) -> Tensor:
    """What a method adds to the base, in float64 so that the sum with the base hides nothing."""
    wide = TaskVectors(
        vectors.tasks,
        lambda task: vectors.read(task).double(),
        factors=lambda task: (
            None if (f := vectors.factors(task)) is None else Factors(f.left.double(), f.right.double())
        ),
        stored=vectors.stored,
    )
    return bound(method)("w", BASE.double(), wide) - BASE.double()


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@SPECTRAL
@pytest.mark.parametrize("vectors", [as_factors(), as_stored(torch.float32), as_stored(torch.bfloat16)])
def test_merged_loras_have_the_rank_of_their_sum(method: str, vectors: TaskVectors) -> None:
    s = torch.linalg.svdvals(change(method, vectors))
    assert int((s > 1e-5 * s[0]).sum()) == RANK * len(TASKS)


@SPECTRAL
def test_a_lora_merges_alike_from_its_factors_and_from_its_stored_sum(method: str) -> None:
    exact = change(method, as_factors())
    assert difference(change(method, as_stored(torch.float32)), exact) < 1e-3
    # TIES cuts small entries off, and noise decides which those are.
    assert difference(change(method, as_stored(torch.bfloat16)), exact) < (0.7 if method == "knots" else 0.35)


@SPECTRAL
def test_a_perturbation_of_a_millionth_changes_a_merge_by_about_as_much(method: str) -> None:
    once = change(method, as_factors())
    assert difference(change(method, as_factors(1 + 1e-6)), once) < 1e-5
    stored = change(method, as_stored(torch.float32))
    assert difference(change(method, as_stored(torch.float32, 1 + 1e-6)), stored) < 1e-2


@SPECTRAL
def test_another_order_of_the_columns_gives_the_same_merge(method: str) -> None:
    order = torch.randperm(SHAPE[1], generator=torch.Generator().manual_seed(1))
    plain = as_stored(torch.float32)
    turned = TaskVectors(TASKS, lambda task: plain.read(task)[:, order], stored=plain.stored)
    expected = bound(method)("w", BASE, plain) - BASE
    found = bound(method)("w", BASE[:, order], turned) - BASE[:, order]
    assert difference(found, expected[:, order]) < 1e-3


def test_iso_c_flattens_to_the_mean_of_the_values_that_are_not_zero() -> None:
    total = sum((item.left.double() @ item.right.double() for item in LORAS.values()), torch.zeros(SHAPE).double())
    expected = torch.linalg.svdvals(total)[: RANK * len(TASKS)].mean()
    s = torch.linalg.svdvals(change("iso_c", as_factors()))
    torch.testing.assert_close(s[: RANK * len(TASKS)], expected.expand(RANK * len(TASKS)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.002, 0.1])
def test_full_fine_tunes_keep_every_direction(dtype: torch.dtype, size: float) -> None:
    origin = BASE.to(dtype)
    step = random_vectors(SHAPE, 1, seed=5, dtype=torch.float32)["task0"] * 0.05 * size
    vector = (origin.float() + step).to(dtype).float() - origin.float()
    found = of_matrix(vector, rounding(origin.float(), dtype))
    u, s, vh = torch.linalg.svd(vector, full_matrices=False)
    assert torch.equal(found.u, u)
    assert torch.equal(found.s, s)
    assert torch.equal(found.vh, vh)


@pytest.mark.parametrize("shape", [(96, 96), (96, 288)])
def test_a_full_fine_tune_of_which_rounding_hides_some_directions_keeps_them(shape: tuple[int, int]) -> None:
    """A spectrum that falls to nothing, so that its last values are smaller than what bfloat16 makes of them."""
    base = random_vectors(shape, 1, seed=9, dtype=torch.float32)["task0"] * 0.05
    u, _, vh = torch.linalg.svd(random_vectors(shape, 1, seed=4)["task0"], full_matrices=False)
    falling = torch.linspace(1, 0, 96, dtype=torch.float64)
    origin = base.to(torch.bfloat16)
    stored = (origin.double() + (u * falling * 0.03) @ vh).to(torch.bfloat16)
    noise = rounding(origin.float(), torch.bfloat16)
    vector = stored.float() - origin.float()
    edge = noise**0.5 * (shape[0] ** 0.5 + shape[1] ** 0.5)
    assert 4 <= int((torch.linalg.svdvals(vector) < edge).sum()) < 48
    assert len(of_matrix(vector, noise).s) == 96


def test_a_full_fine_tune_with_a_tiny_singular_value_keeps_it() -> None:
    u, s, vh = torch.linalg.svd(random_vectors((40, 40), 1)["task0"])
    s[-1] = 1e-7 * s[0]
    assert len(of_matrix(((u * s) @ vh).float(), 0.0).s) == 40


def test_a_few_weights_that_move_by_one_step_of_bfloat16_are_no_rounding() -> None:
    """A fine-tune in bfloat16 with a tiny learning rate leaves most weights as they are."""
    origin = BASE.to(torch.bfloat16)
    moved = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) < 0.02
    vector = torch.where(moved, origin.float() * 2**-7, 0.0)
    found = of_matrix(vector, rounding(origin.float(), torch.bfloat16))
    assert torch.equal(found.s, torch.linalg.svd(vector, full_matrices=False).S)


def test_full_rank_factors_equal_the_dense_decomposition() -> None:
    vectors = random_vectors((8, 12), 1)
    left, right = torch.linalg.qr(vectors["task0"])
    found = of_product(Factors(left, right))
    torch.testing.assert_close((found.u * found.s) @ found.vh, vectors["task0"])
    torch.testing.assert_close(found.s, torch.linalg.svdvals(vectors["task0"]))


def test_factors_of_more_columns_than_the_matrix_go_the_dense_way() -> None:
    loras = {task: Factors(torch.randn(5, 3).double(), torch.randn(3, 6).double()) for task in TASKS}
    vectors = TaskVectors(TASKS, lambda task: loras[task].left @ loras[task].right, factors=loras.__getitem__)
    found = of_sum(torch.randn(5, 6).double(), vectors, ONE)
    expected = sum((item.left @ item.right for item in loras.values()), torch.zeros(5, 6).double())
    torch.testing.assert_close((found.u * found.s) @ found.vh, expected)


def test_a_lora_that_leaves_a_tensor_alone_has_no_direction() -> None:
    nothing = Factors(torch.zeros(4, 0), torch.zeros(0, 5))
    assert of_product(nothing).s.shape == (0,)
    vectors = TaskVectors(["a"], lambda _: torch.zeros(4, 5), factors=lambda _: nothing)
    base = torch.randn(4, 5)
    for method in ("iso_c", "tsv_m"):
        assert torch.equal(bound(method)("w", base, vectors), base)
    assert of_matrix(torch.zeros(4, 5), 0.0).s.shape == (0,)


@SPECTRAL
def test_one_model_twice_adds_no_direction(method: str) -> None:
    twice = TaskVectors(["a", "b"], lambda _: torch.zeros(SHAPE), factors=lambda _: LORAS["a"])
    s = torch.linalg.svdvals(change(method, twice))
    assert int((s > 1e-5 * s[0]).sum()) == RANK


def test_loras_and_full_fine_tunes_merge_together() -> None:
    full = random_vectors(SHAPE, 1, seed=7, dtype=torch.float32)["task0"] * 0.0005
    dense = {"a": LORAS["a"].left @ LORAS["a"].right, "b": full}
    mixed = TaskVectors(["a", "b"], dense.__getitem__, factors=lambda task: LORAS["a"] if task == "a" else None)
    for method in ("iso_c", "tsv_m"):
        found, expected = (bound(method)("w", BASE, vectors) - BASE for vectors in (mixed, stream(dense)))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert isinstance(of_task(BASE, mixed, "a"), Singular)
    assert len(of_task(BASE, mixed, "a").s) == RANK


@pytest.mark.parametrize(("method", "share"), [("linear", 1 / 3), ("task_arithmetic", 0.3)])
def test_averages_of_loras_are_made_from_their_factors(method: str, share: float) -> None:
    total = sum((item.left.double() @ item.right.double() for item in LORAS.values()), torch.zeros(SHAPE).double())
    torch.testing.assert_close(change(method, as_factors()), share * total, rtol=0, atol=1e-9)


def test_knots_of_one_lora_cuts_its_right_singular_vectors_alone() -> None:
    vectors = TaskVectors(["a"], lambda _: random_vectors(SHAPE, 1)["task0"], factors=lambda _: LORAS["a"])
    found = bound("knots", density=0.5)("w", BASE, vectors) - BASE
    exact = LORAS["a"].left @ LORAS["a"].right
    u = torch.linalg.svd(exact, full_matrices=False).U[:, :RANK]
    torch.testing.assert_close(u @ (u.T @ found), found, rtol=0, atol=1e-5)
    assert 0.1 < difference(found, exact) < 0.7
