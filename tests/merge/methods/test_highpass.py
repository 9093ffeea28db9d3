import math

import pytest
import torch

from merge.methods.highpass import apply_mask, kept_fraction, normalized_mask, official_mask

SHAPES = [(8, 8), (7, 9), (12, 5), (6, 11), (1, 4), (5, 1)]


@pytest.mark.parametrize(
    ("shape", "kept"), [((768, 768), 589_711), ((3072, 768), 748_858), ((2304, 768), 748_858), ((768, 3072), 748_858)]
)
def test_official_counts(shape: tuple[int, int], kept: int) -> None:
    assert int(official_mask(*shape, 0.7).sum()) == kept


def test_official_fraction_of_an_mlp_matrix() -> None:
    assert kept_fraction(official_mask(3072, 768, 0.7)) == pytest.approx(0.317, abs=5e-4)


def test_official_mask_is_the_formula_with_its_rim() -> None:
    mask = official_mask(10, 20, 0.5)
    for y in range(10):
        for x in range(20):
            assert bool(mask[y, x]) == (math.hypot(y - 5, x - 10) <= 5)
    assert mask[5, 5]
    assert mask[0, 10]


def test_normalized_mask_is_the_formula_with_its_rim() -> None:
    mask = normalized_mask(10, 20, 0.1)
    frequency = [[math.hypot(min(y, 10 - y) / 10, min(x, 20 - x) / 20) for x in range(20)] for y in range(10)]
    assert mask.tolist() == [[value >= 0.1 - 1e-9 for value in row] for row in frequency]
    assert mask[1, 0]


@pytest.mark.parametrize("mask", [official_mask(16, 16, 0.7), normalized_mask(16, 16, 0.05)])
def test_the_constant_goes_and_nyquist_stays(mask: torch.Tensor) -> None:
    constant = torch.full((16, 16), 3.0, dtype=torch.float64)
    sign = 1.0 - 2.0 * (torch.arange(16) % 2)
    nyquist = torch.outer(sign, sign).double()
    assert apply_mask(constant, mask).abs().max() < 1e-12
    torch.testing.assert_close(apply_mask(nyquist, mask), nyquist, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_plain_complex_transform(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    for mask in (official_mask(*shape, 0.4), normalized_mask(*shape, 0.3)):
        plain = torch.fft.ifft2(torch.fft.fft2(matrix) * mask).real
        torch.testing.assert_close(apply_mask(matrix, mask), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_high_and_low_sum_to_everything(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    mask = official_mask(*shape, 0.5)
    torch.testing.assert_close(apply_mask(matrix, mask) + apply_mask(matrix, ~mask), matrix, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 12), (7, 9)])
def test_parseval(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    mask = normalized_mask(*shape, 0.25)
    energy = (torch.fft.fft2(matrix).abs().square() * mask).sum() / matrix.numel()
    torch.testing.assert_close(apply_mask(matrix, mask).square().sum(), energy)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_transposed_matrix_filters_to_the_transpose(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    turned = apply_mask(matrix.T.contiguous(), official_mask(shape[1], shape[0], 0.5)).T
    torch.testing.assert_close(apply_mask(matrix, official_mask(*shape, 0.5)), turned, rtol=0, atol=1e-12)
