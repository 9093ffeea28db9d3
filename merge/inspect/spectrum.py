"""Radial spectra: how a matrix's energy is spread over spatial frequencies."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 32
HIGHEST = 0.5**0.5
"""Radius of the highest frequency of all, ½ cycle a sample along both axes."""


@dataclass(frozen=True)
class Curve:
    """A spectrum.

    Attributes:
        label: of what.
        power: mean power of a coefficient in each bin, 1 if the energy is spread evenly; None for an empty bin.
    """

    label: str
    power: tuple[float | None, ...]


@dataclass(frozen=True)
class Spectra:
    """Spectra over common frequencies.

    Attributes:
        of: what the curves are of, in a sentence.
        frequency: centre of each bin, in cycles a sample.
        curves: one or two.
        matrices: how many matrices each curve is the mean of.
    """

    of: str
    frequency: tuple[float, ...]
    curves: tuple[Curve, ...]
    matrices: int


def frequencies() -> tuple[float, ...]:
    """Centres of the bins, in cycles a sample: √(f_y² + f_x²)."""
    return tuple(round((i + 0.5) * HIGHEST / BINS, 6) for i in range(BINS))


def radial_spectra(
    labels: tuple[str, ...], pairs: Iterable[tuple[Tensor, ...]], step: Callable[[], None] = lambda: None
) -> tuple[tuple[Curve, ...], int]:
    """Mean radial spectra of matrices, and of what became of each.

    Semantics: P(f) = mean over the coefficients at radius f of |F[m]|², over the mean of all coefficients of the
    *first* matrix of the tuple, so that what a filter takes away shows as power lost; then the mean over tuples.

    Args:
        labels: of the places in a tuple.
        pairs: tuples of matrices [H, W] of one shape.
        step: called after each tuple.

    Returns:
        A curve for each label, and the number of tuples.
    """
    total = torch.zeros(len(labels), BINS, dtype=torch.float64)
    seen = torch.zeros(BINS, dtype=torch.float64)
    count = 0
    for matrices in pairs:
        powers = [_binned(matrix) for matrix in matrices]
        coefficients = powers[0][1]
        scale = powers[0][0].sum() / coefficients.sum()
        if scale > 0:
            present = coefficients > 0
            for row, (power, _) in enumerate(powers):
                total[row, present] += power[present] / coefficients[present] / scale
            seen += present
            count += 1
        step()
    return tuple(
        Curve(label, tuple(round(float(p / n), 6) if n else None for p, n in zip(row, seen, strict=True)))
        for label, row in zip(labels, total, strict=True)
    ), count


def _binned(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of |F|² in each bin, and the number of coefficients there; both [BINS] float64."""
    height, width = matrix.shape
    power = torch.fft.rfft2(matrix.to(torch.float32)).abs().square_().to(torch.float64)
    # The real transform leaves out the mirror images of all columns but the first and, if W is even, the last.
    times = torch.full((power.shape[1],), 2.0, dtype=torch.float64)
    times[0] = 1.0
    if width % 2 == 0:
        times[-1] = 1.0
    fy, fx = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.rfftfreq(width, dtype=torch.float64)
    radius = (fy.square()[:, None] + fx.square()[None, :]).sqrt_()
    bins = (radius * (BINS / HIGHEST)).to(torch.int64).clamp_max(BINS - 1).flatten()
    weights = times.expand_as(power)
    found = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, (power * weights).flatten())
    return found, torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, weights.flatten())
