import pytest
import torch
from torch.nn import functional as F

from kernels.expert_linear import ExpertBatch, expert_linear, product
from kernels.expert_linear.product import linear, padded
from tests.kernels.experts import filled_bank, random_layer

MOST = 2048


def test_few_numbers_of_rows_and_few_rows_too_many() -> None:
    assert len({padded(tokens) for tokens in range(65, MOST + 1)}) == 36
    assert all(padded(tokens) == tokens for tokens in range(17))
    assert all(tokens <= padded(tokens) < tokens + 16 for tokens in range(17, 129))
    assert all(tokens <= padded(tokens) <= tokens * 1.125 for tokens in range(129, 4 * MOST))
    assert all(padded(tokens) == tokens for tokens in (128, 256, 512, 1024, MOST))


@pytest.mark.parametrize("experts", [False, True])
def test_torch_sees_few_shapes_of_bfloat16(monkeypatch: pytest.MonkeyPatch, experts: bool) -> None:
    """oneDNN keeps code for every shape it has seen: a server's memory would grow with the sizes of its batches."""
    seen: set[torch.Size] = set()

    def spy(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.add(x.shape)
        return x.new_zeros(x.shape[0], weight.shape[0])

    monkeypatch.setattr(product.F, "linear", spy)
    _, weight, bias = random_layer(1, 5, 7, torch.bfloat16)
    bank = filled_bank(1, 5, 7, 2, torch.bfloat16) if experts else None
    for tokens in range(65, 1025):
        x = torch.zeros(tokens, 7, dtype=torch.bfloat16)
        batch = ExpertBatch.from_slots([0] * tokens) if experts else None
        assert expert_linear(x, weight, bias, bank, batch).shape == (tokens, 5)
    assert len(seen) == 28


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", [1, 20, 65, 80, 130])
def test_it_is_the_plain_product(dtype: torch.dtype, tokens: int) -> None:
    x, weight, bias = random_layer(tokens, 33, 65, dtype)
    got = linear(x, weight, bias)
    assert got.shape == (tokens, 33)
    assert got.is_contiguous()
    want = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("tokens", [65, 128, 130])
def test_the_result_is_in_the_memory_that_is_given(tokens: int, experts: bool, with_bias: bool) -> None:
    x, weight, bias = random_layer(tokens, 33, 65, torch.bfloat16)
    bias = bias if with_bias else None
    bank = filled_bank(1, 33, 65, 2, torch.bfloat16) if experts else None
    batch = ExpertBatch.from_slots([0] * tokens) if experts else None
    want = expert_linear(x, weight, bias, bank, batch)
    memory = torch.full((padded(tokens) + 3, 33), torch.nan, dtype=torch.bfloat16)
    got = expert_linear(x, weight, bias, bank, batch, out=memory)
    assert got.data_ptr() == memory.data_ptr()
    assert got.shape == (tokens, 33)
    assert memory[padded(tokens) :].isnan().all()
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_no_tokens() -> None:
    _, weight, bias = random_layer(1, 33, 65, torch.bfloat16)
    assert linear(torch.empty(0, 65, dtype=torch.bfloat16), weight, bias).shape == (0, 33)
