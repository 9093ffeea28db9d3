import pytest
import torch
from torch.nn import functional as F

from kernels.expert_linear import ExpertBatch, expert_linear
from kernels.expert_linear.reference import expert_linear_reference
from tests.kernels.experts import filled_bank, filled_low_rank, random_layer

NOBODY = ExpertBatch.from_slots([-1, -1, -1])


@pytest.mark.parametrize(("with_bank", "batch"), [(False, None), (True, None), (True, NOBODY), (False, NOBODY)])
def test_without_experts_it_is_the_plain_product(with_bank: bool, batch: ExpertBatch | None) -> None:
    x, weight, bias = random_layer(3, 33, 65, torch.float32)
    bank = filled_bank(2, 33, 65, 4, torch.float32) if with_bank else None
    low_rank = filled_low_rank(2, [(33, 4)], 65, torch.float32) if with_bank else None
    got = expert_linear(x, weight, bias, bank, batch, low_rank)
    torch.testing.assert_close(got, F.linear(x, weight, bias))
    assert torch.equal(got, expert_linear(x, weight, bias))


@pytest.mark.promise(number=15)
def test_non_contiguous_input() -> None:
    x, weight, bias = random_layer(6, 33, 65, torch.float32)
    bank = filled_bank(2, 33, 65, 4, torch.float32)
    batch = ExpertBatch.from_slots([0, 1, -1])
    for view in (x[::2], x.T.contiguous().T[:3]):
        want = expert_linear_reference(view.double(), weight, bias, bank, batch)
        torch.testing.assert_close(expert_linear(view, weight, bias, bank, batch).double(), want, rtol=0, atol=2e-5)


@pytest.mark.promise(number=15)
def test_no_tokens() -> None:
    _, weight, bias = random_layer(1, 33, 65, torch.bfloat16)
    got = expert_linear(torch.empty(0, 65, dtype=torch.bfloat16), weight, bias, None, ExpertBatch.from_slots([]))
    assert got.shape == (0, 33)


X, WEIGHT, BIAS = random_layer(2, 5, 7, torch.float32)
BANK = filled_bank(2, 5, 7, 3, torch.float32)
LOW_RANK = filled_low_rank(2, [(5, 3)], 7, torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], WEIGHT), "do not fit"),
        ((X[:, :6], WEIGHT), "do not fit"),
        ((X.double(), WEIGHT), "must be the same"),
        ((X, WEIGHT, BIAS[:4]), r"bias must be \[5\]"),
        ((X, WEIGHT[:4], None, BANK, ExpertBatch.from_slots([0, 1])), "the bank is for a weight"),
        ((X, WEIGHT, BIAS, BANK, ExpertBatch.from_slots([0])), "plans 1 tokens but x has 2"),
        ((X, WEIGHT, BIAS, BANK, ExpertBatch.from_slots([0, 2])), "slot 2 is not in this bank of 2 slots"),
        ((X, WEIGHT[:4], None, None, ExpertBatch.from_slots([0, 1]), LOW_RANK), "the bank is for a weight"),
        ((X, WEIGHT, BIAS, None, ExpertBatch.from_slots([0]), LOW_RANK), "plans 1 tokens but x has 2"),
        ((X, WEIGHT, BIAS, None, ExpertBatch.from_slots([0, 2]), LOW_RANK), "slot 2 is not in this bank of 2 slots"),
    ],
)
def test_refuses(arguments: tuple[torch.Tensor, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expert_linear(*arguments)
