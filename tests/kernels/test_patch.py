import pytest
import torch

from kernels.patch import patch, unpatch
from tests.kernels.experts import random_rows

pytestmark = pytest.mark.usefixtures("path")


@pytest.mark.parametrize("index_dtype", [torch.uint16, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "columns", "entries"), [(1, 1, 1), (3, 17, 4), (129, 65, 9)])
def test_patch_adds_and_unpatch_restores_every_bit(
    rows: int, columns: int, entries: int, dtype: torch.dtype, index_dtype: torch.dtype
) -> None:
    weight = torch.randn(rows, columns).to(dtype)
    before = weight.clone()
    index, value = random_rows(rows, columns, entries, seed=3)
    made = patch(weight, index.to(index_dtype), value.to(dtype))
    dense = torch.zeros(rows, columns).scatter_(1, index, value.to(dtype).float())
    assert torch.equal(weight, (before.float() + dense).to(dtype))
    assert made.nbytes == rows * entries * (4 + dtype.itemsize)
    unpatch(weight, made)
    assert torch.equal(weight, before)


def test_padding_that_repeats_a_column_changes_nothing() -> None:
    weight = torch.ones(1, 4)
    made = patch(weight, torch.tensor([[0, 2, 0, 0]]), torch.tensor([[5.0, 7.0, 0.0, 0.0]]))
    assert weight.tolist() == [[6, 1, 8, 1]]
    unpatch(weight, made)
    assert weight.tolist() == [[1, 1, 1, 1]]


def test_what_is_kept_is_as_small_as_the_residual() -> None:
    index, value = random_rows(40, 65, 9, seed=1)
    value[:, 4:] = 0
    weight = torch.randn(40, 65)
    before = weight.clone()
    made = patch(weight, index, value)
    assert made.position.untyped_storage().nbytes() == 40 * 4 * 4
    unpatch(weight, made)
    assert torch.equal(weight, before)


def test_entries_of_one_place_add_up() -> None:
    weight = torch.ones(2, 3)
    made = patch(weight, torch.tensor([[2, 2], [1, 0]]), torch.tensor([[5.0, 7.0], [1.0, 2.0]]))
    assert weight.tolist() == [[1, 1, 13], [3, 2, 1]]
    unpatch(weight, made)
    assert torch.equal(weight, torch.ones(2, 3))


def test_patches_nest() -> None:
    weight = torch.randn(33, 65, dtype=torch.bfloat16)
    before = weight.clone()
    made = [patch(weight, *random_rows(33, 65, 20, seed)) for seed in range(3)]
    for one in reversed(made):
        unpatch(weight, one)
    assert torch.equal(weight, before)


@pytest.mark.promise(number=15)
def test_an_all_zero_expert_keeps_nothing() -> None:
    weight = torch.randn(3, 5)
    before = weight.clone()
    made = patch(weight, torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2))
    assert made.nbytes == 0
    unpatch(weight, made)
    assert torch.equal(weight, before)


INDEX, VALUE = random_rows(4, 6, 2, seed=0)


@pytest.mark.parametrize(
    ("weight", "index", "value", "message"),
    [
        (torch.zeros(6, 4).T, INDEX, VALUE, "contiguous floating weight"),
        (torch.zeros(4, 6, dtype=torch.int32), INDEX, VALUE, "contiguous floating weight"),
        (torch.zeros(3, 6), INDEX, VALUE, r"both be \[3, k\]"),
        (torch.zeros(4, 6), INDEX, VALUE[:, :1], r"both be \[4, k\]"),
        (torch.zeros(4, 6), VALUE, VALUE, "index must be integers"),
        (torch.zeros(4, 6), INDEX + 6, VALUE, "outside 0 to 5"),
        (torch.zeros(4, 6), INDEX - 6, VALUE, "outside 0 to 5"),
    ],
)
def test_patch_refuses(weight: torch.Tensor, index: torch.Tensor, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patch(weight, index, value)
    assert not weight.any()


def test_unpatch_refuses_another_weight() -> None:
    made = patch(torch.zeros(4, 6), INDEX, VALUE)
    with pytest.raises(ValueError, match=r"contiguous torch\.float32"):
        unpatch(torch.zeros(4, 6, dtype=torch.bfloat16), made)
    with pytest.raises(ValueError, match="larger weight"):
        unpatch(torch.zeros(1, 6), made)
