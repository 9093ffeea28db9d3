"""One budget of bytes shared by all weights: what removes most of the error for its bytes is bought first."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """What a weight gains from ever more of one kind of part.

    Attributes:
        gain: [R] float64, the squared error that each further piece removes. It must not ascend.
        cost: bytes of each piece, the same for all.
        fixed: bytes that the first piece costs besides.
    """

    gain: Tensor
    cost: int
    fixed: int = 0

    def worth(self, price: float) -> float:
        """The most that the pieces are worth beyond their bytes, if a byte costs `price` of squared error."""
        return max(0.0, float((self.gain - price * self.cost).clamp_min(0).sum()) - price * self.fixed)


def shared(curves: Mapping[str, Curve], budget: int) -> dict[str, int]:
    """Share a budget: pieces are bought by gain per byte, in all weights at once, until the budget is spent.

    If the next piece does not fit any more, smaller ones of other weights may still.

    Args:
        curves: by weight.
        budget: bytes.

    Returns:
        Pieces of each weight, perhaps 0. It does not depend on the order of `curves`.
    """
    names = sorted(curves)
    gains = [curves[name].gain / curves[name].cost for name in names]
    owner = torch.cat([torch.full((len(gain),), number) for number, gain in enumerate(gains)]) if gains else None
    bought = dict.fromkeys(names, 0)
    if owner is None or not len(owner):
        return bought
    found = torch.cat(gains)
    left, full = budget, set()
    # A stable sort: of equal gains, the first weight by name comes first.
    for number in owner[found.argsort(descending=True, stable=True)].tolist():
        curve = curves[names[number]]
        cost = curve.cost + (0 if bought[names[number]] else curve.fixed)
        if number in full or cost > left:
            full.add(number)
            if len(full) == len(names):
                break
            continue
        bought[names[number]] += 1
        left -= cost
    return bought


def spent(curves: Mapping[str, Curve], pieces: Mapping[str, int]) -> int:
    """Bytes of what was bought."""
    return sum(count * curves[name].cost + curves[name].fixed for name, count in pieces.items() if count)


def price(curves: Mapping[str, Curve], pieces: Mapping[str, int]) -> float:
    """What a byte is worth at the margin: the least gain per byte that was bought; 0 if everything was."""
    bought = [float(curve.gain[pieces[name] - 1]) / curve.cost for name, curve in curves.items() if pieces[name]]
    everything = all(pieces[name] == len(curve.gain) for name, curve in curves.items())
    return 0.0 if everything or not bought else min(bought)
