"""High-pass filters of a weight matrix in the 2-D frequency domain (FR-Merging, arXiv 2411.16815).

Frequencies lie as `fft2` returns them, unshifted: 0 in the corner, Nyquist at (H//2, W//2).
"""

import torch
from torch import Tensor


def official_mask(height: int, width: int, r: float) -> Tensor:
    """The released code's filter: keep the frequencies within r·min(H, W) of the Nyquist frequency.

    Semantics: keep[y, x] = √((y − H//2)² + (x − W//2)²) ≤ r·min(H, W)

    The circle is measured in bins, so its cut depends on the aspect ratio: r = 0.7 removes 113 of the 589,824
    frequencies of a 768 × 768 matrix, and 68 % of those of a 3072 × 768 matrix. The released code adds the frequencies
    at exactly min(H, W)//10 twice; here every frequency counts once.

    Returns:
        [H, W] bool.
    """
    radius = r * min(height, width)
    y, x = (torch.arange(size, dtype=torch.float64) - size // 2 for size in (height, width))
    # The hair's breadth keeps frequencies at exactly the radius inside, as the circle includes its rim.
    keep: Tensor = x.square()[None, :] <= radius * radius * (1 + 1e-12) - y.square()[:, None]
    return keep


def normalized_mask(height: int, width: int, d0: float) -> Tensor:
    """The paper's ideal high-pass in frequencies that do not depend on the shape.

    Semantics: keep[y, x] = √(f_y² + f_x²) ≥ d0, f in cycles a sample (−0.5 to 0.5)

    Returns:
        [H, W] bool.
    """
    fy, fx = (torch.fft.fftfreq(size, dtype=torch.float64) for size in (height, width))
    keep: Tensor = fx.square()[None, :] >= d0 * d0 * (1 - 1e-12) - fy.square()[:, None]
    return keep


def kept_fraction(mask: Tensor) -> float:
    """Share of the frequencies that a mask keeps."""
    return int(mask.sum()) / mask.numel()


def apply_mask(matrix: Tensor, mask: Tensor) -> Tensor:
    """Filter a real matrix.

    Semantics: Re F⁻¹[mask · F[matrix]]

    Args:
        matrix: [H, W] float32 or float64.
        mask: [H, W] bool.

    Returns:
        [H, W], of the matrix's dtype.
    """
    height, width = matrix.shape
    half = width // 2 + 1
    # For odd sizes the masks are not symmetric about frequency 0. Taking the real part is the same as averaging the
    # mask with its mirror image, which lets the cheaper real transform do.
    mirrored = mask.flip(0, 1).roll((1, 1), (0, 1))
    gain = (mask[:, :half].to(matrix.dtype) + mirrored[:, :half].to(matrix.dtype)).to(matrix.device) / 2
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(matrix).mul_(gain), s=(height, width))
    return filtered
