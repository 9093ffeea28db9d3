import pytest
import torch

from kernels.expert_linear import ExpertBatch, add_low_rank_rows
from kernels.expert_linear.reference import dense_low_rank
from tests.kernels.experts import filled_low_rank, unfilled_plan

SEGMENTS = [(17, 3), (30, 9)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
def test_rows_are_those_of_the_dense_residual(dtype: torch.dtype) -> None:
    bank = filled_low_rank(3, SEGMENTS, 21, dtype)
    generator = torch.Generator().manual_seed(0)
    slots = torch.randint(-1, 3, (150, 2), generator=generator)
    gates, rows = torch.rand(150, 2, generator=generator), torch.randint(47, (150,), generator=generator)
    x = torch.randn(150, 21, generator=generator)
    want = x.double()
    for token in range(150):
        for slot, gate in zip(slots[token].tolist(), gates[token].tolist(), strict=True):
            if slot >= 0:
                want[token] += gate * dense_low_rank(bank, slot, torch.float64)[rows[token]]
    whole = x.clone()
    add_low_rank_rows(whole, rows, bank, ExpertBatch.from_slots(slots, gates))
    torch.testing.assert_close(whole.double(), want, rtol=1e-5, atol=1e-5)
    for token in range(0, 150, 30):
        alone = x[token : token + 1].clone()
        own = ExpertBatch.from_slots(slots[token : token + 1], gates[token : token + 1])
        add_low_rank_rows(alone, rows[token : token + 1], bank, own)
        assert torch.equal(alone[0], whole[token])


def test_what_an_earlier_expert_left_is_not_read() -> None:
    bank = filled_low_rank(1, [(20, 6)], 8, torch.float32)
    bank.a[0] = bank.b[0] = bank.scale[0] = torch.nan
    bank.load(0, [(torch.ones(2, 8), torch.ones(20, 2), torch.ones(2))])
    x = torch.zeros(2, 8)
    add_low_rank_rows(x, torch.tensor([3, 19]), bank, ExpertBatch.from_slots([0, -1]))
    assert x.tolist() == [[2.0] * 8, [0.0] * 8]
    bank.clear(0)
    add_low_rank_rows(x, torch.tensor([3, 19]), bank, ExpertBatch.from_slots([0, 0]))
    assert x.tolist() == [[2.0] * 8, [0.0] * 8]


def test_a_plan_that_is_filled_later() -> None:
    bank = filled_low_rank(3, SEGMENTS, 21, torch.float32)
    plan, rows = unfilled_plan(4, 2), torch.tensor([1, 40, 3, 4])
    own = ExpertBatch.from_slots([[2, -1], [0, 1]], [[0.5, 9.0], [2.0, -1.0]])
    plan.fill(own)
    want, got = torch.zeros(2, 21), torch.zeros(4, 21)
    add_low_rank_rows(want, rows[:2], bank, own)
    add_low_rank_rows(got, rows, bank, plan)
    assert torch.equal(got[:2], want)
    assert not got[2:].any()


def test_refuses() -> None:
    bank = filled_low_rank(2, SEGMENTS, 21, torch.float32)
    with pytest.raises(ValueError, match=r"x must be \[1, 21\] and rows \[1\], not \[2, 21\] and \[2\]"):
        add_low_rank_rows(torch.zeros(2, 21), torch.zeros(2, dtype=torch.int64), bank, ExpertBatch.from_slots([0]))
    with pytest.raises(ValueError, match="slot 2 is not in this bank of 2 slots"):
        add_low_rank_rows(torch.zeros(1, 21), torch.zeros(1, dtype=torch.int64), bank, ExpertBatch.from_slots([2]))
