import pytest
import torch
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from kernels.expert_linear import ExpertBatch
from kernels.expert_norm import expert_bias, expert_rms_norm


def llama_norm(x: Tensor, weight: Tensor) -> Tensor:
    norm = LlamaRMSNorm(weight.shape[0], eps=1e-5).to(weight.dtype)
    norm.weight.data.copy_(weight)
    return norm(x).detach()


# torch's own sums and the compiled ones differ in their order. In bf16 that can move the rounded norm by one unit in
# the last place, 2^-7 of it, and then either rounding of its product with the weight by half of one.
TOLERANCE = {torch.bfloat16: 2**-6, torch.float32: 1e-6}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (5, 2, 129), (40, 3, 300)])
def test_without_experts_it_is_llamas_norm(path: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    got, want = expert_rms_norm(x, weight, 1e-5), llama_norm(x, weight)
    assert got.dtype == dtype
    assert torch.equal(got, want) or path != "torch"
    torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", [(), (3,)])
@pytest.mark.usefixtures("path")
def test_every_token_gets_its_experts_weight(heads: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.randn(4, *heads, 33).to(dtype), torch.randn(33).to(dtype)
    delta = torch.randn(3, 33)
    batch = ExpertBatch.from_slots([[0, -1], [-1, -1], [2, 1], [1, -1]], [[1, 9], [9, 9], [0.25, 0.5], [1, 9]])
    got = expert_rms_norm(x, weight, 1e-5, delta, batch)
    shifts = [delta[0], torch.zeros(33), 0.25 * delta[2] + 0.5 * delta[1], delta[1]]
    for token, shift in enumerate(shifts):
        want = llama_norm(x[token], (weight.float() + shift).to(dtype))
        torch.testing.assert_close(got[token], want, rtol=TOLERANCE[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.usefixtures("path")
def test_with_an_offset_it_is_gemmas_norm(dtype: torch.dtype) -> None:
    x, weight, delta = torch.randn(3, 33).to(dtype), torch.randn(33).to(dtype), torch.randn(1, 33)
    got = expert_rms_norm(x, weight, 1e-5, delta, ExpertBatch.from_slots([-1, 0, -1]), offset=1.0)
    assert got.dtype == dtype
    for token, shift in enumerate((torch.zeros(33), delta[0], torch.zeros(33))):
        norm = Gemma2RMSNorm(33, eps=1e-5).to(dtype)
        norm.weight.data.copy_((weight.float() + shift).to(dtype))
        torch.testing.assert_close(got[token], norm(x[token]).detach(), rtol=TOLERANCE[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.usefixtures("path")
def test_a_token_is_normed_the_same_in_any_company(dtype: torch.dtype) -> None:
    x, weight, delta = torch.randn(700, 2, 65).to(dtype)[:, 1:], torch.randn(65).to(dtype), torch.randn(2, 65)
    slots = [token % 3 - 1 for token in range(700)]
    together = expert_rms_norm(x, weight, 1e-5, delta, ExpertBatch.from_slots(slots))
    for token in (0, 1, 350, 699):
        own = ExpertBatch.from_slots([[slots[token], -1]])
        assert torch.equal(expert_rms_norm(x[token : token + 1], weight, 1e-5, delta, own)[0], together[token])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.usefixtures("path")
def test_bias(dtype: torch.dtype) -> None:
    y, delta = torch.randn(3, 17).to(dtype), torch.randn(2, 17)
    for given in (y, y.T.contiguous().T):
        got = expert_bias(given, delta, ExpertBatch.from_slots([[1], [-1], [0]], [[0.5], [1], [1]]))
        assert torch.equal(got[1], y[1])
        torch.testing.assert_close(got[0], (y[0].float() + 0.5 * delta[1]).to(dtype), rtol=1e-6, atol=1e-7)
        assert torch.equal(got[2], (y[2].float() + delta[0]).to(dtype))


def test_bias_without_experts_is_the_input() -> None:
    y = torch.randn(2, 5)
    assert expert_bias(y) is y
    assert expert_bias(y, torch.ones(1, 5), ExpertBatch.from_slots([-1, -1])) is y


@pytest.mark.parametrize(
    ("delta", "slots", "message"),
    [
        (torch.ones(2, 4), [0, 1], r"delta must be contiguous fp32 \[slots, 5\]"),
        (torch.ones(2, 5).half(), [0, 1], r"not torch.float16 \[2, 5\]"),
        (torch.ones(2, 5), [0], "plans 1 tokens"),
        (torch.ones(2, 5), [0, 2], "slot 2 is not among the 2 slots"),
    ],
)
def test_refuses(delta: Tensor, slots: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expert_rms_norm(torch.ones(2, 5), torch.ones(5), 1e-5, delta, ExpertBatch.from_slots(slots))
    with pytest.raises(ValueError, match=message):
        expert_bias(torch.ones(2, 5), delta, ExpertBatch.from_slots(slots))


def test_norm_refuses_a_weight_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"weight must be \[5\]"):
        expert_rms_norm(torch.ones(2, 5), torch.ones(4), 1e-5)
