import pytest
import torch

from merge.methods.highpass import apply_mask, kept_fraction, normalized_mask, official_mask
from tests.merge.methods.vectors import bound, random_vectors, stream

SHAPE = (12, 20)
VECTORS = random_vectors(SHAPE, 3)
BASE = random_vectors(SHAPE, 1, seed=9)["task0"]


def change(name: str = "model.layers.0.mlp.up_proj.weight", **parameters: object) -> torch.Tensor:
    return bound("fr", **parameters)(name, BASE, stream(VECTORS)) - BASE


def test_const_is_the_sum_of_the_filtered_vectors() -> None:
    mask = official_mask(*SHAPE, 0.7)
    expected = sum(0.2 * apply_mask(vector, mask) for vector in VECTORS.values())
    torch.testing.assert_close(change(**{"lambda": 0.2}), expected)
    torch.testing.assert_close(change(), expected * 1.5)


def test_weights_multiply() -> None:
    by_task = {"task0": {"weight": 2.0}, "task1": {"weight": 0.0}}
    merged = bound("fr", by_task, weight=0.5, **{"lambda": 1.0})("w", BASE, stream(VECTORS)) - BASE
    expected = apply_mask(2 * VECTORS["task0"] + 0.5 * VECTORS["task2"], official_mask(*SHAPE, 0.7))
    torch.testing.assert_close(merged, expected)


def test_normalized_filter() -> None:
    expected = apply_mask(sum(VECTORS.values(), torch.zeros(SHAPE)), normalized_mask(*SHAPE, 0.2))
    torch.testing.assert_close(change(filter="normalized", d0=0.2, **{"lambda": 1.0}), expected)


def test_paper_coefficients_follow_the_mean_magnitudes_and_sum_to_one() -> None:
    means = {task: vector.abs().mean() for task, vector in VECTORS.items()}
    total = sum(means.values(), torch.tensor(0.0))
    expected = sum(
        means[task] / total * apply_mask(vector, official_mask(*SHAPE, 0.7)) for task, vector in VECTORS.items()
    )
    torch.testing.assert_close(change(coefficients="paper"), expected)


def test_align_lifts_every_filtered_vector_to_the_largest() -> None:
    filtered = {task: apply_mask(vector, official_mask(*SHAPE, 0.7)) for task, vector in VECTORS.items()}
    largest = max(float(vector.abs().mean()) for vector in filtered.values())
    expected = sum(vector * (largest / vector.abs().mean()) for vector in filtered.values())
    torch.testing.assert_close(change(coefficients="align", **{"lambda": 1.0}), expected)


@pytest.mark.parametrize("coefficients", ["paper", "align"])
def test_a_tensor_that_no_task_changed_stays(coefficients: str) -> None:
    nothing = stream(dict.fromkeys(VECTORS, torch.zeros(SHAPE, dtype=torch.float64)))
    assert torch.equal(bound("fr", coefficients=coefficients)("w", BASE, nothing), BASE)


def test_shrink_is_a_multiple_of_the_plain_sum() -> None:
    expected = kept_fraction(official_mask(*SHAPE, 0.7)) * sum(VECTORS.values(), torch.zeros(SHAPE))
    torch.testing.assert_close(change(control="shrink", **{"lambda": 1.0}), expected)


def test_embeddings_and_vectors_are_not_filtered() -> None:
    total = sum(VECTORS.values(), torch.zeros(SHAPE))
    torch.testing.assert_close(change("model.embed_tokens.weight", **{"lambda": 1.0}), total)
    filtered = change("model.embed_tokens.weight", exclude=["*norm*"], **{"lambda": 1.0})
    torch.testing.assert_close(filtered, apply_mask(total, official_mask(*SHAPE, 0.7)))
    norms = random_vectors((6,))
    merged = bound("fr", **{"lambda": 1.0})("norm", torch.zeros(6).double(), stream(norms))
    torch.testing.assert_close(merged, sum(norms.values(), torch.zeros(6)))
