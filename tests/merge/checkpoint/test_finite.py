"""Counting NaN and infinity, piece by piece."""

import math

import pytest
import torch

from merge.checkpoint import count_not_finite
from merge.checkpoint.finite import PIECE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_piece_is_looked_at(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, PIECE // 2 + 5, dtype=dtype)
    assert count_not_finite(tensor) == 0
    tensor[0, 0], tensor[2, -1], tensor[1, 7] = math.nan, math.inf, -math.inf
    assert count_not_finite(tensor) == 3
    assert count_not_finite(tensor.T) == 3


def test_large_finite_numbers_are_not_infinite() -> None:
    assert count_not_finite(torch.full((PIECE + 1,), torch.finfo(torch.float32).max)) == 0
    assert count_not_finite(torch.full((9,), torch.finfo(torch.float64).max, dtype=torch.float64)) == 0


def test_integers_and_nothing_are_finite() -> None:
    assert count_not_finite(torch.arange(4)) == count_not_finite(torch.zeros(0)) == 0
