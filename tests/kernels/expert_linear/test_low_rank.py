import pytest
import torch

from kernels.expert_linear import LowRankBank
from kernels.expert_linear.low_rank import Factors
from kernels.expert_linear.reference import dense_low_rank
from tests.kernels.experts import random_factors

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.int8]
SEGMENTS = [(17, 3), (1, 0), (40, 300), (5, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_returns_what_load_was_given(dtype: torch.dtype) -> None:
    bank = LowRankBank.allocate(2, SEGMENTS, 33, dtype)
    assert bank.factors(1) == [None] * 4
    # A full slot first: nothing of it may be left.
    bank.load(1, [random_factors(17, 33, 3, dtype), None, random_factors(40, 33, 300, dtype), None])
    given = [
        random_factors(17, 33, 2, dtype),
        None,
        random_factors(40, 33, 256, dtype),
        random_factors(5, 33, 1, dtype),
    ]
    bank.load(1, given)
    for want, got in zip(given, bank.factors(1), strict=True):
        assert (want is None) == (got is None)
        assert want is None or got is None or all(map(torch.equal, want, got))
    assert bank.factors(0) == [None] * 4
    bank.clear(1)
    assert bank.factors(1) == [None] * 4


def test_int8_factors_are_exact_in_wider_banks() -> None:
    factors = random_factors(20, 7, 3, torch.int8)
    want = LowRankBank.allocate(1, [(20, 3)], 7, torch.int8)
    want.load(0, [factors])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        bank = LowRankBank.allocate(1, [(20, 3)], 7, dtype)
        bank.load(0, [factors])
        assert torch.equal(dense_low_rank(bank, 0), dense_low_rank(want, 0))


def test_rows_of_one_weight_are_those_of_its_factors() -> None:
    bank = LowRankBank.allocate(1, [(2, 1), (1, 2)], 2, torch.float32)
    one = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), torch.tensor([0.5])
    two = torch.eye(2), torch.tensor([[5.0, 6.0]]), torch.tensor([1.0, 10.0])
    bank.load(0, [one, two])
    assert dense_low_rank(bank, 0).tolist() == [[1.5, 3.0], [2.0, 4.0], [5.0, 60.0]]


def test_nbytes_counts_factors_scales_and_ranks() -> None:
    # 16 + 17 rows: one whole block, then two more that have rows of the second segment.
    bank = LowRankBank.allocate(3, [(16, 8), (17, 4)], 100, torch.int8)
    assert bank.slots == 3
    assert bank.nbytes == 3 * (12 * 100 + 16 * 8 + 2 * 16 * 4 + 12 * 4 + 2 * 4)


@pytest.mark.parametrize(
    ("slots", "segments", "columns", "dtype", "message"),
    [
        (0, [(4, 1)], 4, torch.bfloat16, "slots of at least 1"),
        (1, [], 4, torch.bfloat16, "segments of at least 1"),
        (1, [(4, 1)], 0, torch.bfloat16, "in_features of at least 1"),
        (1, [(0, 1)], 4, torch.bfloat16, "at least 1 row and a rank of 0 or more, not 0 and 1"),
        (1, [(4, -1)], 4, torch.bfloat16, "not 4 and -1"),
        (1, [(4, 0)], 4, torch.bfloat16, "a segment whose rank is at least 1"),
        (1, [(4, 1)], 4, torch.float64, "not torch.float64"),
    ],
)
def test_allocate_refuses(
    slots: int, segments: list[tuple[int, int]], columns: int, dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LowRankBank.allocate(slots, segments, columns, dtype)


A, B, SCALE = random_factors(4, 3, 2, torch.float32)


@pytest.mark.parametrize(
    ("slot", "part", "message"),
    [
        (1, (A, B, SCALE), "slot 1 is not in this bank of 1 slots"),
        (0, (A[:, :2], B, SCALE), r"a must be \[0 to 2, 3\], not \[2, 2\]"),
        (0, random_factors(4, 3, 3, torch.float32), r"a must be \[0 to 2, 3\], not \[3, 3\]"),
        (0, (A, B[:3], SCALE), r"b must be \[4, 2\], not \[3, 2\]"),
        (0, (A, B[:, :1], SCALE), r"b must be \[4, 2\]"),
        (0, (A, B, SCALE[:1]), r"scale must be floating \[2\]"),
        (0, (A, B, SCALE.to(torch.int64)), r"scale must be floating \[2\], not torch.int64"),
        (0, (A, B.to(torch.bfloat16), SCALE), "of one floating dtype or int8"),
        (0, (A.to(torch.int64), B.to(torch.int64), SCALE), "of one floating dtype or int8"),
    ],
)
def test_load_refuses_and_leaves_the_slot(slot: int, part: Factors, message: str) -> None:
    bank = LowRankBank.allocate(1, [(4, 2), (3, 1)], 3, torch.float32)
    bank.load(0, [(A, B, SCALE), None])
    before = dense_low_rank(bank, 0)
    other = random_factors(3, 3, 1, torch.float32)
    with pytest.raises(ValueError, match=message):
        bank.load(slot, [part, other])
    assert torch.equal(dense_low_rank(bank, 0), before)


def test_load_refuses_other_segments_and_wider_factors() -> None:
    bank = LowRankBank.allocate(1, [(4, 2)], 3, torch.int8)
    with pytest.raises(ValueError, match="this bank has 1 segments, not 2"):
        bank.load(0, [None, None])
    with pytest.raises(ValueError, match="this bank stores int8 factors, not torch.float32"):
        bank.load(0, [(A, B, SCALE)])
