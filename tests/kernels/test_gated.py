import pytest
import torch
from torch.nn import functional as F

from kernels.gated import ACTIVATIONS, Activation, gated

# Each rounding to bf16 is half a unit in its 8th bit; plain torch rounds twice.
TOLERANCE = {torch.bfloat16: 2**-7, torch.float32: 2e-6}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "size"), [(1, 1), (3, 33), (40, 1000)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("path")
def test_matches_fp64(tokens: int, size: int, dtype: torch.dtype, activation: Activation) -> None:
    x = (torch.randn(2 * tokens, 2 * size) * 8).to(dtype)[::2]
    gate, up = x.double().chunk(2, dim=-1)
    got = gated(x, activation)
    assert got.dtype == dtype
    # Torch computes 1 + tanh of GELU in fp32, in which it vanishes far below 0.
    want, least = (F.silu(gate), 1e-30) if activation == "silu" else (F.gelu(gate, approximate="tanh"), 2e-5)
    torch.testing.assert_close(got.double(), want * up, rtol=TOLERANCE[dtype], atol=least)


@pytest.mark.usefixtures("path")
def test_large_gates_neither_overflow_nor_vanish() -> None:
    x = torch.tensor([[1e30, -1e30, 100.0, -100.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    for activation in ACTIVATIONS:
        got = gated(x, activation)
        torch.testing.assert_close(got, torch.tensor([[1e30, 0.0, 100.0, 0.0, 0.0]]), rtol=1e-6, atol=1e-6)


def test_nan_stays(path: str) -> None:
    assert all(gated(torch.tensor([[float("nan"), 1.0]]), activation).isnan().all() for activation in ACTIVATIONS)


def test_refuses() -> None:
    for shape in ((3,), (2, 3)):
        with pytest.raises(ValueError, match=r"gate_up must be \[T, 2 I\]"):
            gated(torch.ones(shape))
