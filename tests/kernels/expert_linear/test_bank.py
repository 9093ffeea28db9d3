import pytest
import torch

from kernels.expert_linear import ExpertBank
from kernels.expert_linear.reference import dense_expert
from tests.kernels.experts import random_rows


@pytest.mark.parametrize(("rows", "columns", "entries"), [(1, 1, 1), (3, 17, 2), (17, 129, 5), (129, 70_000, 3)])
def test_rows_returns_what_load_was_given(rows: int, columns: int, entries: int) -> None:
    bank = ExpertBank.allocate(2, rows, columns, entries, torch.float32)
    index, value = random_rows(rows, columns, entries, seed=1)
    bank.load(1, index, value)
    got_index, got_value = bank.rows(1)
    assert torch.equal(got_index, index)
    assert torch.equal(got_value, value)
    assert not bank.rows(0)[1].any()


def test_index_dtype_follows_the_columns() -> None:
    assert ExpertBank.allocate(1, 2, 65_536, 1, torch.bfloat16).index.dtype == torch.uint16
    assert ExpertBank.allocate(1, 2, 65_537, 1, torch.bfloat16).index.dtype == torch.int32


def test_columns_beyond_int16_survive() -> None:
    bank = ExpertBank.allocate(1, 1, 65_536, 1, torch.float32)
    bank.load(0, torch.tensor([[65_535]], dtype=torch.int32).to(torch.uint16), torch.ones(1, 1))
    assert bank.rows(0)[0].item() == 65_535


@pytest.mark.promise(number=15)
def test_fewer_entries_are_padded_and_replace_all_of_the_slot() -> None:
    bank = ExpertBank.allocate(1, 17, 33, 6, torch.float32)
    bank.load(0, *random_rows(17, 33, 6, seed=1))
    index, value = random_rows(17, 33, 2, seed=2)
    bank.load(0, index, value)
    assert torch.equal(dense_expert(bank, 0), torch.zeros(17, 33).scatter_(1, index, value))


@pytest.mark.promise(number=15)
def test_clear_empties_one_slot() -> None:
    bank = ExpertBank.allocate(2, 5, 7, 3, torch.float32)
    for slot in range(2):
        bank.load(slot, *random_rows(5, 7, 3, seed=slot))
    bank.clear(0)
    assert not dense_expert(bank, 0).any()
    assert dense_expert(bank, 1).any()


def test_int8_values_are_scaled_by_row() -> None:
    index = torch.tensor([[0, 2], [1, 2]])
    value = torch.tensor([[127, -3], [5, 0]], dtype=torch.int8)
    scale = torch.tensor([0.5, 2.0])
    want = torch.tensor([[63.5, 0, -1.5], [0, 10.0, 0]])
    for dtype in (torch.int8, torch.float32):
        bank = ExpertBank.allocate(1, 2, 3, 2, dtype)
        bank.load(0, index, value, scale)
        assert torch.equal(dense_expert(bank, 0), want)


def test_nbytes_counts_index_value_and_scale() -> None:
    assert ExpertBank.allocate(2, 32, 100, 3, torch.bfloat16).nbytes == 2 * 32 * 3 * 4
    assert ExpertBank.allocate(2, 32, 100, 3, torch.int8).nbytes == 2 * 32 * (3 * 3 + 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 4, 1, torch.bfloat16), "slots of at least 1"),
        ((1, 4, 4, 0, torch.bfloat16), "1 to 4 entries"),
        ((1, 4, 4, 5, torch.bfloat16), "1 to 4 entries"),
        ((1, 4, 4, 1, torch.float64), "not torch.float64"),
    ],
)
def test_allocate_refuses(arguments: tuple[int, int, int, int, torch.dtype], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertBank.allocate(*arguments)


INDEX = torch.tensor([[0, 1], [1, 2]])
VALUE = torch.ones(2, 2)
CODES = torch.ones(2, 2, dtype=torch.int8)


@pytest.mark.parametrize(
    ("slot", "index", "value", "scale", "message"),
    [
        (1, INDEX, VALUE, None, "slot 1 is not in this bank of 1 slots"),
        (0, INDEX[:1], VALUE[:1], None, r"must be \[2, 1 to 2\]"),
        (0, torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3), None, r"must be \[2, 1 to 2\]"),
        (0, INDEX, VALUE[:, :1], None, "value is"),
        (0, INDEX.float(), VALUE, None, "integer tensor"),
        (0, INDEX, VALUE.to(torch.int32), None, "floating or int8"),
        (0, INDEX + 1, VALUE, None, "outside 0 to 2"),
        (0, INDEX - 1, VALUE, None, "outside 0 to 2"),
        (0, INDEX, CODES, None, "need a scale"),
        (0, INDEX, CODES, torch.ones(3), r"floating \[2\]"),
        (0, INDEX, VALUE, torch.ones(2), "scale is only valid with int8"),
    ],
)
def test_load_refuses_and_leaves_the_slot(
    slot: int, index: torch.Tensor, value: torch.Tensor, scale: torch.Tensor | None, message: str
) -> None:
    bank = ExpertBank.allocate(1, 2, 3, 2, torch.float32)
    bank.load(0, INDEX, 2 * VALUE)
    before = dense_expert(bank, 0)
    with pytest.raises(ValueError, match=message):
        bank.load(slot, index, value, scale)
    assert torch.equal(dense_expert(bank, 0), before)


def test_an_int8_bank_refuses_floating_values() -> None:
    bank = ExpertBank.allocate(1, 2, 3, 2, torch.int8)
    with pytest.raises(ValueError, match="stores int8 values with a scale"):
        bank.load(0, INDEX, VALUE)
