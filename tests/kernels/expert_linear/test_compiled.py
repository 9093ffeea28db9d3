import pytest
import torch
from torch.nn import functional as F

from kernels.compiled import Library
from kernels.expert_linear import ExpertBatch, LowRankBank
from kernels.expert_linear.compiled import compiles, expert_linear_compiled, linear_then_residuals
from kernels.expert_linear.dispatch import MOST_TOKENS
from kernels.expert_linear.reference import expert_linear_reference
from tests.kernels.experts import filled_bank, filled_low_rank, random_factors, random_layer

# Outputs are of order 1. One rounding to bf16 is half a unit in its 8th bit; two roundings (torch's product, then the
# residual) up to twice that; fp32 sums differ from fp64 by their order.
ONE_ROUNDING = {torch.bfloat16: 4.5e-3, torch.float32: 2e-5}
TWO_ROUNDINGS = {torch.bfloat16: 1.2e-2, torch.float32: 2e-5}
SHAPES = [(1, 1, 1, 1), (3, 17, 129, 5), (8, 129, 17, 3), (5, 48, 2500, 11), (19, 33, 96, 7)]


@pytest.mark.promise(number=15)
@pytest.mark.parametrize("value_dtype", [torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize("dtype", ONE_ROUNDING)
@pytest.mark.parametrize(("tokens", "rows", "columns", "entries"), SHAPES)
def test_matches_the_reference(
    kernels: Library,
    tokens: int,
    rows: int,
    columns: int,
    entries: int,
    dtype: torch.dtype,
    value_dtype: torch.dtype,
) -> None:
    x, weight, bias = random_layer(tokens, rows, columns, dtype)
    bank = filled_bank(3, rows, columns, entries, value_dtype)
    generator = torch.Generator().manual_seed(1)
    slots = torch.randint(-1, 3, (tokens, 2), generator=generator)
    batch = ExpertBatch.from_slots(slots, torch.rand(tokens, 2, generator=generator))
    want = expert_linear_reference(x.double(), weight, bias, bank, batch)
    for function, tolerance in (
        (expert_linear_compiled, ONE_ROUNDING[dtype]),
        (linear_then_residuals, TWO_ROUNDINGS[dtype]),
    ):
        got = function(kernels, x, weight, bias, bank, batch)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ONE_ROUNDING)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 8, 9, 17])
def test_the_plain_product_for_every_tile(kernels: Library, tokens: int, dtype: torch.dtype) -> None:
    x, weight, _ = random_layer(tokens, 35, 1056, dtype)
    got = expert_linear_compiled(kernels, x, weight, None, None, None)
    want = expert_linear_reference(x.double(), weight, None, None, None)
    torch.testing.assert_close(got.double(), want, rtol=ONE_ROUNDING[dtype], atol=ONE_ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ONE_ROUNDING)
@pytest.mark.parametrize("columns", [96, 3000])
def test_a_token_gets_the_same_bits_in_any_company(kernels: Library, columns: int, dtype: torch.dtype) -> None:
    x, weight, bias = random_layer(21, 40, columns, dtype)
    bank = filled_bank(4, 40, columns, 9, dtype)
    # Slot 1 has 17 tokens (more than 16 lanes), slot 2 three, slot 0 one and one token none.
    slots = [1] * 9 + [2, -1, 2, 0, 2] + [1] * 7
    together = expert_linear_compiled(kernels, x, weight, bias, bank, ExpertBatch.from_slots(slots))
    for token, slot in enumerate(slots):
        own = ExpertBatch.from_slots([[slot, -1]])
        alone = expert_linear_compiled(kernels, x[token : token + 1], weight, bias, bank, own)
        assert torch.equal(together[token], alone[0])


@pytest.mark.parametrize("dtype", ONE_ROUNDING)
def test_the_most_tokens_get_the_bits_that_each_gets_alone(kernels: Library, dtype: torch.dtype) -> None:
    tokens = MOST_TOKENS[dtype]
    x, weight, bias = random_layer(tokens, 40, 1056, dtype)
    bank = filled_bank(3, 40, 1056, 9, dtype)
    # One expert has more than 32 tokens, the widest that are computed side by side; the others and none share the rest.
    slots = [0 if token % 5 < 3 else token % 3 - 1 for token in range(tokens)]
    together = expert_linear_compiled(kernels, x, weight, bias, bank, ExpertBatch.from_slots(slots))
    for token, slot in enumerate(slots):
        own = ExpertBatch.from_slots([slot])
        alone = expert_linear_compiled(kernels, x[token : token + 1], weight, bias, bank, own)
        assert torch.equal(together[token], alone[0])


def test_residuals_of_many_tokens_do_not_depend_on_company(kernels: Library) -> None:
    x, weight, _ = random_layer(40, 40, 96, torch.float32)
    weight.zero_()
    bank = filled_bank(3, 40, 96, 9, torch.float32)
    slots = [token * 7 % 4 - 1 for token in range(40)]
    together = linear_then_residuals(kernels, x, weight, None, bank, ExpertBatch.from_slots(slots))
    for token, slot in enumerate(slots):
        own = ExpertBatch.from_slots([slot])
        alone = expert_linear_compiled(kernels, x[token : token + 1], weight, None, bank, own)
        assert torch.equal(together[token], alone[0])


def test_the_number_of_threads_changes_nothing(kernels: Library) -> None:
    x, weight, bias = random_layer(3, 100, 70, torch.bfloat16)
    bank = filled_bank(3, 100, 70, 4, torch.bfloat16)
    batch = ExpertBatch.from_slots([0, 2, 2])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 9):
            torch.set_num_threads(threads)
            results.append(expert_linear_compiled(kernels, x, weight, bias, bank, batch))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.promise(number=15)
def test_strided_operands(kernels: Library) -> None:
    x, weight, _ = random_layer(6, 33, 130, torch.float32)
    bank = filled_bank(2, 33, 65, 4, torch.float32)
    batch = ExpertBatch.from_slots([0, 1, 1])
    for inputs in (x[::2, :65], x[:3, ::2]):
        for matrix in (weight[:, :65], weight[:, ::2]):
            got = expert_linear_compiled(kernels, inputs, matrix, None, bank, batch)
            want = expert_linear_reference(inputs.double(), matrix, None, bank, batch)
            torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", ONE_ROUNDING)
def test_infinities_and_nans_pass_through(kernels: Library, dtype: torch.dtype) -> None:
    x = torch.tensor([[float("inf"), 1.0], [float("nan"), 1.0], [3e38, 3e38]]).to(dtype)
    weight = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).to(dtype)
    got = expert_linear_compiled(kernels, x, weight, None, None, None)
    assert torch.equal(got.isnan(), F.linear(x, weight).isnan())
    assert got[0, 0] == float("inf")
    assert got[2, 0] == float("inf")


def test_what_is_compiled() -> None:
    x = torch.zeros(1, 70_000, dtype=torch.bfloat16)
    assert compiles(x, None)
    assert not compiles(x.half(), None)
    assert not compiles(x, filled_bank(1, 1, 70_000, 1, torch.bfloat16))
    assert compiles(x, filled_bank(1, 1, 64, 1, torch.int8))
    assert not compiles(x, filled_bank(1, 1, 64, 1, torch.float16))
    assert compiles(x, None, filled_low_rank(1, [(1, 1)], 70_000, torch.bfloat16))
    assert not compiles(x, None, filled_low_rank(1, [(1, 1)], 64, torch.float16))


# Runs of rows that end inside a block of 16, one that no expert changes, a rank beyond a block; of all rows.
SEGMENTS = {1: [(1, 3)], 17: [(3, 2), (14, 5)], 129: [(17, 3), (30, 0), (82, 40)], 33: [(16, 8), (17, 4)]}
LOW_RANK_SHAPES = [(1, 1, 1), (3, 17, 129), (8, 129, 17), (19, 33, 96), (45, 129, 70)]


@pytest.mark.parametrize("with_bank", [False, True])
@pytest.mark.parametrize("factors", [torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize("dtype", ONE_ROUNDING)
@pytest.mark.parametrize(("tokens", "rows", "columns"), LOW_RANK_SHAPES)
def test_low_rank_matches_the_reference(
    kernels: Library,
    tokens: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    factors: torch.dtype,
    with_bank: bool,
) -> None:
    x, weight, bias = random_layer(tokens, rows, columns, dtype)
    bank = filled_bank(4, rows, columns, 1, torch.bfloat16) if with_bank else None
    low_rank = filled_low_rank(4, SEGMENTS[rows], columns, factors)
    generator = torch.Generator().manual_seed(1)
    slots = torch.randint(-1, 4, (tokens, 2), generator=generator)
    batch = ExpertBatch.from_slots(slots, torch.rand(tokens, 2, generator=generator))
    want = expert_linear_reference(x.double(), weight, bias, bank, batch, low_rank)
    for function, tolerance in (
        (expert_linear_compiled, ONE_ROUNDING[dtype]),
        (linear_then_residuals, TWO_ROUNDINGS[dtype]),
    ):
        got = function(kernels, x, weight, bias, bank, batch, low_rank)
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ONE_ROUNDING)
def test_low_rank_gives_a_token_the_same_bits_in_any_company(kernels: Library, dtype: torch.dtype) -> None:
    tokens = MOST_TOKENS[dtype]
    x, weight, bias = random_layer(tokens, 129, 1056, dtype)
    bank = filled_bank(3, 129, 1056, 9, dtype)
    low_rank = filled_low_rank(3, [(40, 9), (89, 256)], 1056, dtype)
    # One expert has more tokens than are computed together; the others and none share the rest.
    slots = [0 if token % 5 < 3 else token % 3 - 1 for token in range(tokens)]
    together = expert_linear_compiled(kernels, x, weight, bias, bank, ExpertBatch.from_slots(slots), low_rank)
    for token, slot in enumerate(slots):
        own = ExpertBatch.from_slots([[slot, -1]])
        alone = expert_linear_compiled(kernels, x[token : token + 1], weight, bias, bank, own, low_rank)
        assert torch.equal(together[token], alone[0])


def test_low_rank_of_many_tokens_does_not_depend_on_company(kernels: Library) -> None:
    x, weight, _ = random_layer(80, 40, 96, torch.float32)
    weight.zero_()
    low_rank = filled_low_rank(3, [(7, 5), (33, 17)], 96, torch.bfloat16)
    slots = [0] * 40 + [token * 7 % 4 - 1 for token in range(40)]
    together = linear_then_residuals(kernels, x, weight, None, None, ExpertBatch.from_slots(slots), low_rank)
    for token, slot in enumerate(slots):
        own = ExpertBatch.from_slots([slot])
        alone = expert_linear_compiled(kernels, x[token : token + 1], weight, None, None, own, low_rank)
        assert torch.equal(together[token], alone[0])


def test_low_rank_with_any_number_of_threads(kernels: Library) -> None:
    x, weight, bias = random_layer(3, 100, 70, torch.bfloat16)
    low_rank = filled_low_rank(3, [(60, 6), (40, 4)], 70, torch.int8)
    batch = ExpertBatch.from_slots([0, 2, 2])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 9):
            torch.set_num_threads(threads)
            results.append(expert_linear_compiled(kernels, x, weight, bias, None, batch, low_rank))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_only_the_rank_of_a_slot_is_read_and_only_its_rows_are_changed(kernels: Library) -> None:
    x, weight, bias = random_layer(2, 40, 33, torch.float32)
    low_rank = LowRankBank.allocate(2, [(20, 6), (20, 6)], 33, torch.float32)
    low_rank.a.fill_(torch.nan)
    low_rank.b.fill_(torch.nan)
    low_rank.scale.fill_(torch.nan)
    batch, plain = ExpertBatch.from_slots([1, -1]), expert_linear_compiled(kernels, x, weight, bias, None, None)
    got = expert_linear_compiled(kernels, x, weight, bias, None, batch, low_rank)
    assert torch.equal(got, plain)
    low_rank.load(1, [None, random_factors(20, 33, 2, torch.float32)])
    for function in (expert_linear_compiled, linear_then_residuals):
        got = function(kernels, x, weight, bias, None, batch, low_rank)
        want = expert_linear_reference(x.double(), weight, bias, None, batch, low_rank)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)
    low_rank.load(1, [(torch.full((1, 33), torch.inf), torch.ones(20, 1), torch.ones(1)), None])
    got = expert_linear_compiled(kernels, x, weight, bias, None, batch, low_rank)
    assert torch.equal(got[:, 20:], plain[:, 20:])
    assert not got[0, :20].isfinite().any()
