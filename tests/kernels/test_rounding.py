import sys
from unittest import mock

import pytest
import torch
from torch import Tensor

from kernels.compiled import Library
from kernels.rounding import least_error


def reference(value: Tensor, scale: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """Integers of each candidate `[C, R, K]`, and their squared errors `[C, R]`, in fp64."""
    wide = scale.T[:, :, None]
    integers = (value / wide).round().clamp(lowest, highest)
    return integers.to(torch.int8), (value.double() - integers.double() * wide.double()).square().sum(2)


@pytest.mark.parametrize(("lowest", "highest"), [(-128, 127), (-8, 7)])
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 31), (7, 32), (5, 129), (2, 4096)])
def test_takes_the_first_scale_of_the_least_error(
    kernels: Library, rows: int, size: int, lowest: int, highest: int
) -> None:
    generator = torch.Generator().manual_seed(rows + size)
    value = torch.randn(rows, size, generator=generator).to(torch.bfloat16).float()
    parts = torch.tensor([1.0, 0.9, 0.9, 0.8, 0.5, 1e-30])
    scale = (value.abs().amax(1, keepdim=True) / highest * parts).to(torch.bfloat16).float().contiguous()
    value[0] = 0
    with mock.patch.object(sys.modules["kernels.rounding"], "library", return_value=kernels):
        found = least_error(value, scale, lowest, highest)
    assert found is not None
    integer, chosen = found
    want, errors = reference(value, scale, lowest, highest)
    each = torch.arange(rows)
    # Sums of `size` squares in fp32 are off by some units in the last place.
    assert bool((errors[chosen, each] <= errors.amin(0) * (1 + 1e-5)).all())
    assert torch.equal(integer, want[chosen, each])
    assert int(chosen[0]) == 0, "of equal errors, those of zeros, the first"
    assert 2 not in chosen.tolist(), "the second of two equal scales"


def test_is_left_to_others_without_the_library() -> None:
    with mock.patch.object(sys.modules["kernels.rounding"], "library", return_value=None):
        assert least_error(torch.ones(1, 1), torch.ones(1, 1), -8, 7) is None
