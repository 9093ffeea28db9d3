"""The Triton kernels, run by Triton's interpreter on the CPU."""

import pytest
import torch

from kernels.expert_linear import ExpertBatch
from kernels.expert_linear.reference import expert_linear_reference
from tests.kernels.experts import filled_bank, filled_low_rank, random_layer, unfilled_plan

pytest.importorskip("triton")
from kernels.expert_linear.triton import MOST_DECODE_TOKENS, expert_linear_triton

# One rounding of outputs of order 1 in a decode step; two above (torch's product, then the residual).
TOLERANCE = {torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3, torch.float32: 2e-5}
SLOTS = {
    "empty": lambda tokens: [-1] * tokens,
    "same": lambda tokens: [1] * tokens,
    "distinct": lambda tokens: [token % 3 for token in range(tokens)],
    "mixed": lambda tokens: [[token % 4 - 1, token % 2] for token in range(tokens)],
}


CASES = [
    *((shape, "mixed", dtype) for shape in ((1, 3, 17, 1), (3, 17, 129, 9), (17, 33, 3, 3)) for dtype in TOLERANCE),
    *(((5, 129, 17, 3), company, torch.bfloat16) for company in SLOTS),
    *(((129, 17, 17, 1), company, torch.float32) for company in SLOTS),
]


@pytest.mark.parametrize(("shape", "company", "dtype"), CASES)
def test_matches_the_reference(shape: tuple[int, int, int, int], company: str, dtype: torch.dtype) -> None:
    tokens, rows, columns, entries = shape
    x, weight, bias = random_layer(tokens, rows, columns, dtype)
    bank = filled_bank(3, rows, columns, entries, dtype)
    slots = torch.tensor(SLOTS[company](tokens))
    batch = ExpertBatch.from_slots(slots, torch.rand(slots.shape))
    want = expert_linear_reference(x.double(), weight, bias, bank, batch)
    got = expert_linear_triton(x, weight, bias, bank, batch)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("tokens", [5, MOST_DECODE_TOKENS + 1])
def test_int8_values_and_no_bias(tokens: int) -> None:
    x, weight, _ = random_layer(tokens, 33, 65, torch.float32)
    bank = filled_bank(3, 33, 65, 9, torch.int8)
    batch = ExpertBatch.from_slots([token % 4 - 1 for token in range(tokens)])
    want = expert_linear_reference(x.double(), weight, None, bank, batch)
    got = expert_linear_triton(x, weight, None, bank, batch)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)


def test_columns_beyond_16_bits() -> None:
    x, weight, _ = random_layer(2, 3, 70_000, torch.float32)
    bank = filled_bank(2, 3, 70_000, 5, torch.float32)
    batch = ExpertBatch.from_slots([1, 0])
    want = expert_linear_reference(x.double(), weight, None, bank, batch)
    torch.testing.assert_close(expert_linear_triton(x, weight, None, bank, batch).double(), want, rtol=0, atol=1e-4)


def test_strided_operands() -> None:
    x, weight, _ = random_layer(6, 33, 130, torch.float32)
    bank = filled_bank(2, 33, 65, 4, torch.float32)
    batch = ExpertBatch.from_slots([0, 1, 1])
    for inputs in (x[::2, :65], x[:3, ::2]):
        for matrix in (weight[:, :65], weight[:, ::2]):
            got = expert_linear_triton(inputs, matrix, None, bank, batch)
            want = expert_linear_reference(inputs.double(), matrix, None, bank, batch)
            torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tokens", [20, MOST_DECODE_TOKENS + 6])
def test_experts_add_the_same_bits_in_any_company(tokens: int) -> None:
    x, weight, _ = random_layer(tokens, 17, 65, torch.float32)
    weight.zero_()
    bank = filled_bank(3, 17, 65, 9, torch.float32)
    slots = [token * 7 % 4 - 1 for token in range(tokens)]
    together = expert_linear_triton(x, weight, None, bank, ExpertBatch.from_slots(slots))
    for token in range(0, tokens, 5):
        own = ExpertBatch.from_slots([slots[token]])
        alone = expert_linear_triton(x[token : token + 1], weight, None, bank, own)
        assert torch.equal(together[token], alone[0])


@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_one_launch_does_the_work_of_any_later_step(tokens: int) -> None:
    """A captured launch reads at each replay how many groups there are, however many there were at the first."""
    x, weight, bias = random_layer(32, 33, 65, torch.float32)
    bank = filled_bank(5, 33, 65, 9, torch.float32)
    low_rank = filled_low_rank(5, [(20, 4), (13, 7)], 65, torch.float32)
    plan = unfilled_plan(32, 2)
    steps = [
        [[-1, -1]] * tokens,
        [[3, -1]] * tokens,
        [[token % 5, -1] for token in range(tokens)],
        [[token % 5, (token + 2) % 6 - 1] for token in range(tokens)],
        [[-1, -1]] * (tokens - 1) + [[-1, 2]],
    ]
    for slots in steps:
        gates = torch.rand(tokens, 2, generator=torch.Generator().manual_seed(tokens))
        own = ExpertBatch.from_slots(slots, gates)
        plan.fill(own)
        found = expert_linear_triton(x, weight, bias, bank, plan, low_rank)
        want = expert_linear_reference(x[:tokens].double(), weight, bias, bank, own, low_rank)
        torch.testing.assert_close(found[:tokens].double(), want, rtol=0, atol=2e-5)
        without = expert_linear_reference(x[tokens:].double(), weight, bias, None, None)
        torch.testing.assert_close(found[tokens:].double(), without, rtol=0, atol=2e-5)


# Segments that end inside a tile and inside a block of rows, and a rank of more than one tile.
SEGMENTS = [(17, 3), (20, 20), (4, 0), (3, 2)]


@pytest.mark.parametrize(
    ("tokens", "dtype", "factors", "with_bank"),
    [
        (3, torch.float32, torch.float16, False),
        (19, torch.float32, torch.int8, True),
        (3, torch.bfloat16, torch.bfloat16, False),
        (3, torch.bfloat16, torch.int8, True),
        (3, torch.float16, torch.bfloat16, False),
        (MOST_DECODE_TOKENS + 1, torch.float32, torch.bfloat16, True),
        (MOST_DECODE_TOKENS + 1, torch.float32, torch.int8, False),
    ],
)
def test_low_rank_matches_the_reference(tokens: int, dtype: torch.dtype, factors: torch.dtype, with_bank: bool) -> None:
    x, weight, bias = random_layer(tokens, 44, 130, dtype)
    bank = filled_bank(3, 44, 130, 5, dtype) if with_bank else None
    low_rank = filled_low_rank(3, SEGMENTS, 130, factors)
    slots = torch.tensor(SLOTS["mixed"](tokens))
    batch = ExpertBatch.from_slots(slots, torch.rand(slots.shape))
    want = expert_linear_reference(x.double(), weight, bias, bank, batch, low_rank)
    got = expert_linear_triton(x, weight, bias, bank, batch, low_rank)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_low_rank_adds_the_same_bits_in_any_company_and_reads_no_further_than_its_rank() -> None:
    x, weight, _ = random_layer(20, 44, 130, torch.float32)
    weight.zero_()
    low_rank = filled_low_rank(3, SEGMENTS, 130, torch.float32)
    parts = [
        [
            None if part is None else (part[0].clone(), part[1].clone(), part[2].clone())
            for part in low_rank.factors(slot)
        ]
        for slot in range(3)
    ]
    low_rank.a.fill_(torch.nan)
    low_rank.b.fill_(torch.nan)
    for slot, given in enumerate(parts):
        low_rank.load(slot, given)
    slots = [token * 7 % 4 - 1 for token in range(20)]
    together = expert_linear_triton(x, weight, None, None, ExpertBatch.from_slots(slots), low_rank)
    assert bool(together.isfinite().all())
    for token in range(0, 20, 5):
        own = ExpertBatch.from_slots([slots[token]])
        alone = expert_linear_triton(x[token : token + 1], weight, None, None, own, low_rank)
        assert torch.equal(together[token], alone[0])
