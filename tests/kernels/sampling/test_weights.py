import pytest
import torch

from kernels.sampling.weights import UNIT, weights


def made(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    scale = torch.tensor([1.4426950408889634 / temperature] * len(logits))
    return weights(logits, logits.amax(-1), scale)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_they_are_proportional_to_the_softmax(temperature: float) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    exact = torch.softmax(logits.double() / temperature, -1)
    exact *= UNIT / exact.amax(-1, keepdim=True)
    found = made(logits, temperature)
    assert found.amax(-1).tolist() == [UNIT] * 3
    # The distance from the highest logit is rounded to float32 before its exponential is taken.
    assert torch.allclose(found.double(), exact, rtol=1e-6 / temperature + 1e-6, atol=0.51)


def test_what_is_far_below_the_highest_has_none() -> None:
    logits = torch.tensor([[0.0, -21.0, -22.0, -1e4, -3e38, -torch.inf]])
    assert made(logits)[0].tolist() == [UNIT, 1, 0, 0, 0, 0]
    assert made(logits, 1e300)[0].tolist() == [UNIT] * 5 + [0]
