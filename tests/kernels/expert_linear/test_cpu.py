import pytest
import torch

from kernels.expert_linear import ExpertBatch
from kernels.expert_linear.cpu import expert_linear_torch
from kernels.expert_linear.reference import expert_linear_reference
from tests.kernels.experts import filled_bank, filled_low_rank, random_layer

# Outputs are of order 1. The product by torch rounds to x's dtype before the residual is added and rounded again:
# two units of the last place each way (2^-8 for bf16, 2^-11 for fp16); fp32 differs by the order of its sums.
TOLERANCE = {torch.bfloat16: 4e-2, torch.float16: 6e-3, torch.float32: 2e-5}


@pytest.mark.promise(number=15)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("columns", [1, 17, 129])
@pytest.mark.parametrize("rows", [1, 3, 129])
def test_matches_the_reference(rows: int, columns: int, dtype: torch.dtype) -> None:
    x, weight, bias = random_layer(5, rows, columns, dtype)
    bank = filled_bank(3, rows, columns, min(columns, 7), dtype)
    batch = ExpertBatch.from_slots([[0, 2], [-1, -1], [1, -1], [2, 2], [-1, 0]], torch.rand(5, 2))
    want = expert_linear_reference(x.double(), weight, bias, bank, batch)
    got = expert_linear_torch(x, weight, bias, bank, batch)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_experts_add_the_same_bits_in_any_company() -> None:
    x, weight, _ = random_layer(8, 129, 65, torch.float32)
    weight.zero_()
    bank = filled_bank(4, 129, 65, 9, torch.float32)
    slots = [0, 1, 1, -1, 3, 1, 0, 2]
    together = expert_linear_torch(x, weight, None, bank, ExpertBatch.from_slots(slots))
    for token, slot in enumerate(slots):
        alone = expert_linear_torch(x[token : token + 1], weight, None, bank, ExpertBatch.from_slots([slot]))
        assert torch.equal(together[token], alone[0])


@pytest.mark.parametrize("factors", [torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_bank", [False, True])
def test_low_rank_matches_the_reference(with_bank: bool, dtype: torch.dtype, factors: torch.dtype) -> None:
    x, weight, bias = random_layer(5, 64, 33, dtype)
    bank = filled_bank(3, 64, 33, 7, dtype) if with_bank else None
    low_rank = filled_low_rank(3, [(17, 3), (30, 40), (17, 2)], 33, factors)
    batch = ExpertBatch.from_slots([[0, 2], [-1, -1], [1, -1], [2, 2], [-1, 0]], torch.rand(5, 2))
    want = expert_linear_reference(x.double(), weight, bias, bank, batch, low_rank)
    got = expert_linear_torch(x, weight, bias, bank, batch, low_rank)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
