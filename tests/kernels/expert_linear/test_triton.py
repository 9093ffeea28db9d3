"""The Triton kernels, run by Triton's interpreter on the CPU."""

import pytest
import torch
from torch import Tensor

from kernels import on_gpu
from kernels.expert_linear import ExpertBank, ExpertBatch, LowRankBank, expert_linear
from kernels.expert_linear.reference import expert_linear_reference
from tests.kernels.experts import filled_bank, filled_low_rank, random_layer, unfilled_plan

pytest.importorskip("triton")
from kernels.expert_linear.residual_triton import shrinks_by_itself
from kernels.expert_linear.triton import expert_linear_triton

# What rounding a number changes at most, by that number; and the order of a sum.
UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
SUMS = 2e-5
SLOTS = {
    "empty": lambda tokens: [-1] * tokens,
    "same": lambda tokens: [1] * tokens,
    "distinct": lambda tokens: [token % 3 for token in range(tokens)],
    "mixed": lambda tokens: [[token % 4 - 1, token % 2] for token in range(tokens)],
}


CASES = [
    *((shape, "mixed", dtype) for shape in ((1, 3, 17, 1), (3, 17, 129, 9), (17, 33, 3, 3)) for dtype in UNIT),
    *(((5, 129, 17, 3), company, torch.bfloat16) for company in SLOTS),
    *(((129, 17, 17, 1), company, torch.float32) for company in SLOTS),
]


def assert_rounded(
    got: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bank: ExpertBank | None,
    batch: ExpertBatch,
    low_rank: LowRankBank | None = None,
) -> None:
    """The result is the reference except for three roundings.

    They are those of what the experts and the bias add, which the interpreter truncates instead, of the sum, and of the
    product before it, which torch rounds on a CPU.
    """
    want = expert_linear_reference(x.double(), weight, bias, bank, batch, low_rank)
    product = x.double() @ weight.double().T
    bound = UNIT[x.dtype] * (want.abs() + product.abs() + 2 * (want - product).abs()) * 1.01 + SUMS
    assert got.dtype == x.dtype
    assert bool(((got.double() - want).abs() <= bound).all())


@pytest.mark.parametrize(("shape", "company", "dtype"), CASES)
def test_matches_the_reference(shape: tuple[int, int, int, int], company: str, dtype: torch.dtype) -> None:
    tokens, rows, columns, entries = shape
    x, weight, bias = random_layer(tokens, rows, columns, dtype)
    bank = filled_bank(3, rows, columns, entries, dtype)
    slots = torch.tensor(SLOTS[company](tokens))
    batch = ExpertBatch.from_slots(slots, torch.rand(slots.shape))
    assert_rounded(expert_linear_triton(x, weight, bias, bank, batch), x, weight, bias, bank, batch)


@pytest.mark.parametrize("tokens", [5, 65])
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


@pytest.mark.parametrize("tokens", [20, 70])
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
def test_one_launch_does_the_work_of_any_later_step(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured launch reads at each replay how many tiles there are, however many there were at the first."""
    monkeypatch.setattr("kernels.expert_linear.tiles.PROGRAMS", 6)
    x, weight, bias = random_layer(20, 33, 65, torch.float32)
    bank = filled_bank(5, 33, 65, 9, torch.float32)
    low_rank = filled_low_rank(5, [(20, 4), (13, 7)], 65, torch.float32)
    plan = unfilled_plan(20, 2)
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


@pytest.fixture(params=["shrinking", "shrunk before"])
def shrinks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to get `A x`: in the launch that needs it, and in one before."""
    monkeypatch.setattr("kernels.expert_linear.triton.shrinks_by_itself", lambda *_: request.param == "shrinking")


@pytest.mark.usefixtures("shrinks")
@pytest.mark.parametrize(
    ("tokens", "dtype", "factors", "with_bank"),
    [
        (3, torch.float32, torch.float16, False),
        (19, torch.float32, torch.int8, True),
        (3, torch.bfloat16, torch.bfloat16, False),
        (3, torch.bfloat16, torch.int8, True),
        (3, torch.float16, torch.bfloat16, False),
        (65, torch.float32, torch.bfloat16, True),
        (65, torch.float32, torch.int8, False),
    ],
)
def test_low_rank_matches_the_reference(tokens: int, dtype: torch.dtype, factors: torch.dtype, with_bank: bool) -> None:
    x, weight, bias = random_layer(tokens, 44, 130, dtype)
    bank = filled_bank(3, 44, 130, 5, dtype) if with_bank else None
    low_rank = filled_low_rank(3, SEGMENTS, 130, factors)
    slots = torch.tensor(SLOTS["mixed"](tokens))
    batch = ExpertBatch.from_slots(slots, torch.rand(slots.shape))
    got = expert_linear_triton(x, weight, bias, bank, batch, low_rank)
    assert_rounded(got, x, weight, bias, bank, batch, low_rank)


@pytest.mark.usefixtures("shrinks")
@pytest.mark.parametrize("with_bank", [False, True])
def test_low_rank_adds_the_same_bits_in_any_company_and_reads_no_further_than_its_rank(with_bank: bool) -> None:
    x, weight, _ = random_layer(20, 44, 130, torch.float32)
    weight.zero_()
    bank = filled_bank(3, 44, 130, 5, torch.float32) if with_bank else None
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
    together = expert_linear_triton(x, weight, None, bank, ExpertBatch.from_slots(slots), low_rank)
    assert bool(together.isfinite().all())
    for token in range(0, 20, 5):
        own = ExpertBatch.from_slots([slots[token]])
        alone = expert_linear_triton(x[token : token + 1], weight, None, bank, own, low_rank)
        assert torch.equal(together[token], alone[0])


@pytest.mark.parametrize("with_bank", [False, True])
def test_what_shrinks_does_not_change_a_bit(with_bank: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens shrink in the launch that expands, many before it: a token must not see which."""
    x, weight, bias = random_layer(19, 300, 2600, torch.float32)
    bank = filled_bank(3, 300, 2600, 5, torch.int8) if with_bank else None
    low_rank = filled_low_rank(3, [(200, 7), (60, 16), (40, 3)], 2600, torch.float32)
    batch = ExpertBatch.from_slots([[token * 7 % 4 - 1, token % 2] for token in range(19)], torch.rand(19, 2))
    found = []
    for shrinks in (True, False):
        monkeypatch.setattr("kernels.expert_linear.triton.shrinks_by_itself", lambda *_, s=shrinks: s)
        found.append(expert_linear_triton(x, weight, bias, bank, batch, low_rank))
    assert torch.equal(*found)
    assert_rounded(found[0], x, weight, bias, bank, batch, low_rank)


@pytest.mark.parametrize(("rows", "with_bank"), [(2070, False), (300, True)])
def test_factors_of_many_tiles(rows: int, with_bank: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows above 2,048, 64 tokens of groups that end inside a tile of tokens, and more tiles than programs."""
    x, weight, bias = random_layer(64, rows, 12, torch.float32)
    bank = filled_bank(3, rows, 12, 2, torch.int8) if with_bank else None
    low_rank = filled_low_rank(3, [(rows - 20, 6), (20, 9)], 12, torch.int8)
    batch = ExpertBatch.from_slots([0] * 37 + [1] * 3 + [-1] * 2 + [2] * 22)
    monkeypatch.setattr("kernels.expert_linear.tiles.PROGRAMS", 12)
    assert shrinks_by_itself(low_rank, with_bank, batch.tiles.most)
    got = expert_linear_triton(x, weight, bias, bank, batch, low_rank)
    assert_rounded(got, x, weight, bias, bank, batch, low_rank)


def test_rows_and_tokens_of_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a tile, more tiles than programs, and 64 tokens of groups that end inside a tile of tokens."""
    x, weight, bias = random_layer(64, 2070, 12, torch.float32)
    bank = filled_bank(3, 2070, 12, 2, torch.int8)
    batch = ExpertBatch.from_slots([0] * 37 + [1] * 3 + [-1] * 2 + [2] * 22)
    monkeypatch.setattr("kernels.expert_linear.tiles.PROGRAMS", 40)
    got = expert_linear_triton(x, weight, bias, bank, batch)
    assert_rounded(got, x, weight, bias, bank, batch)


def test_a_sum_of_many_columns_is_made_in_parts() -> None:
    x, weight, bias = random_layer(5, 20, 2600, torch.float32)
    low_rank = filled_low_rank(2, [(20, 5)], 2600, torch.float32)
    batch = ExpertBatch.from_slots([0, 1, -1, 1, 0])
    got = expert_linear_triton(x, weight, bias, None, batch, low_rank)
    assert_rounded(got, x, weight, bias, None, batch, low_rank)


@pytest.mark.parametrize("tokens", [4, 70])
def test_a_token_without_an_expert_has_one_product_in_any_company(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product is the same call, and on a CPU the same bits, whether a neighbour carries an expert or not."""
    called: list[tuple[int, ...]] = []
    product = Tensor.addmm_

    def spy(self: Tensor, left: Tensor, right: Tensor) -> Tensor:
        called.append((*self.shape, *self.stride(), *left.stride(), *right.stride()))
        return product(self, left, right)

    monkeypatch.setattr(on_gpu, "runs_triton", lambda _: True)
    monkeypatch.setattr(Tensor, "addmm_", spy)
    x, weight, bias = random_layer(tokens, 33, 64, torch.bfloat16)
    bank = filled_bank(3, 33, 64, 9, torch.bfloat16)
    plans = [ExpertBatch.from_slots([-1] * (tokens - 1) + [last]) for last in (-1, 2)]
    without, beside = (expert_linear(x, weight, bias, bank, plan) for plan in plans)
    assert len(called) == 2
    assert called[0] == called[1]
    assert torch.equal(without[:-1], beside[:-1])
    assert torch.equal(without, expert_linear(x, weight, bias, bank, None))


def test_no_more_programs_are_launched_than_twice_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt beside many sequences that decode: the grid follows the tiles, not the largest group."""
    grids: list[tuple[int, ...]] = []
    monkeypatch.setattr(on_gpu, "launch", lambda _, grid, *operands, **constants: grids.append(grid))
    x, weight, bias = random_layer(2048 + 63, 300, 40, torch.float32)
    slots = [63] * 2048 + list(range(63))
    batch = ExpertBatch.from_slots(slots)
    assert batch.tiles.most == 2048 // 16 + 63
    expert_linear_triton(x, weight, bias, filled_bank(64, 300, 40, 3, torch.float32), batch)
    low_rank = filled_low_rank(64, [(300, 4)], 40, torch.float32)
    expert_linear_triton(x, weight, bias, None, batch, low_rank)
    expert_linear_triton(x, weight, bias, filled_bank(64, 300, 40, 3, torch.float32), batch, low_rank)
    assert len(grids) == 1 + 2 + 2
    for rows, tiles, *_ in grids:
        assert tiles <= batch.tiles.most
        assert rows <= -(-300 // 64)
