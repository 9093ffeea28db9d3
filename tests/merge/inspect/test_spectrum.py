import pytest
import torch

from merge.inspect.spectrum import BINS, HIGHEST, frequencies, radial_spectra
from merge.methods.highpass import apply_mask, normalized_mask


def curve(matrix: torch.Tensor) -> list[float]:
    (found,), _ = radial_spectra(("m",), [(matrix,)])
    return [0.0 if power is None else power for power in found.power]


@pytest.mark.parametrize("shape", [(32, 32), (31, 20), (24, 33)])
def test_white_noise_is_spread_evenly(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [(torch.randn(shape, generator=generator),) for _ in range(200)]
    (found,), count = radial_spectra(("noise",), noise)
    assert count == 200
    powers = [power for power in found.power if power is not None]
    assert all(power == pytest.approx(1.0, abs=0.35) for power in powers)
    assert sum(powers) / len(powers) == pytest.approx(1.0, abs=0.05)


def test_a_wave_is_at_its_frequency() -> None:
    x = torch.arange(64, dtype=torch.float32)
    found = curve(torch.cos(2 * torch.pi * 0.25 * x).repeat(64, 1))
    assert int(torch.tensor(found).argmax()) == int(0.25 / HIGHEST * BINS)
    checkerboard = (-1.0) ** (x[:, None] + x[None, :])
    assert int(torch.tensor(curve(checkerboard)).argmax()) == BINS - 1


def test_a_filter_takes_away_what_lies_below_it() -> None:
    matrix = torch.randn(40, 40, generator=torch.Generator().manual_seed(1))
    kept = apply_mask(matrix, normalized_mask(40, 40, 0.3))
    (before, after), _ = radial_spectra(("before", "after"), [(matrix, kept)])
    for f, p, q in zip(frequencies(), before.power, after.power, strict=True):
        if p is not None and q is not None:
            if f < 0.28:
                assert q == pytest.approx(0.0, abs=1e-6)
            elif f > 0.32:
                assert q == pytest.approx(p, rel=1e-3)


def test_a_matrix_of_zeros_counts_for_nothing() -> None:
    (found,), count = radial_spectra(("zero",), [(torch.zeros(8, 8),)])
    assert count == 0
    assert set(found.power) == {None}
