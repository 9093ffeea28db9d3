import pytest
import torch
from torch.nn import functional as F

from kernels.silu_mul import silu_mul

# Each rounding to bf16 is half a unit in its 8th bit; plain torch rounds twice.
TOLERANCE = {torch.bfloat16: 2**-7, torch.float32: 2e-6}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "size"), [(1, 1), (3, 33), (40, 1000)])
@pytest.mark.usefixtures("path")
def test_matches_fp64(tokens: int, size: int, dtype: torch.dtype) -> None:
    x = (torch.randn(2 * tokens, 2 * size) * 8).to(dtype)[::2]
    gate, up = x.double().chunk(2, dim=-1)
    got = silu_mul(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), F.silu(gate) * up, rtol=TOLERANCE[dtype], atol=1e-30)


@pytest.mark.usefixtures("path")
def test_large_gates_neither_overflow_nor_vanish() -> None:
    x = torch.tensor([[1e30, -1e30, 100.0, -100.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(silu_mul(x), torch.tensor([[1e30, 0.0, 100.0, 0.0, 0.0]]), rtol=1e-6, atol=1e-6)


def test_nan_stays(path: str) -> None:
    assert silu_mul(torch.tensor([[float("nan"), 1.0]])).isnan().all()


def test_refuses() -> None:
    for shape in ((3,), (2, 3)):
        with pytest.raises(ValueError, match=r"gate_up must be \[T, 2 I\]"):
            silu_mul(torch.ones(shape))
