"""Tokens in the order of their probabilities, without sorting them."""

import numpy as np
from numpy.typing import NDArray

_LEVELS = ((16, 1 << 15), (8, 1 << 8), (0, 1 << 8))
"""(shift, keys) of the digits of a non-negative float's bit pattern, from the highest down."""


class Ranking:
    """The tokens of one row in descending order of probability, ties in ascending order of token.

    A sort of a large vocabulary takes more than ten milliseconds a row. Where probabilities are cumulated up to a given
    mass only one place of that order is wanted, and a radix selection finds it in linear time: the bit patterns of
    non-negative floats are in the order of their values, so masses are added up by the upper digit, then by the next
    one for the tokens with the wanted upper digit, and so on. What remains are tokens of equal probability.

    Args:
        probabilities: [vocab] float32, none negative, at least one above 0.
    """

    def __init__(self, probabilities: NDArray[np.float32]) -> None:
        self._probabilities = probabilities
        self._bits = probabilities.view(np.int32)
        self._upper = self._bits >> _LEVELS[0][0]
        self._cumulated = _cumulated(self._upper, probabilities, _LEVELS[0][1])

    @property
    def total(self) -> float:
        """The mass of all tokens."""
        return float(self._cumulated[-1])

    def token_at(self, mass: float) -> int:
        """The first token at which the cumulated mass exceeds `mass`, or the last one of any mass."""
        ties, value, before = self._ties(mass, inclusive=False)
        return int(ties[min(max(int((mass - before) / value), 0), len(ties) - 1)])

    def mass_through(self, mass: float) -> float:
        """The cumulated mass at the first token where it is at least `mass`; the total where that is less."""
        ties, value, before = self._ties(mass, inclusive=True)
        return before + value * min(max(int(np.ceil((mass - before) / value)), 1), len(ties))

    def _ties(self, mass: float, inclusive: bool) -> tuple[NDArray[np.int64], float, float]:
        """The tokens of equal probability among which `mass` is reached, that probability, and the mass before them."""
        key, before = _reached(self._cumulated, mass, inclusive)
        tokens = np.flatnonzero(self._upper == key)
        for shift, keys in _LEVELS[1:]:
            digits = (self._bits[tokens] >> shift) & (keys - 1)
            cumulated = _cumulated(digits, self._probabilities[tokens], keys)
            key, more = _reached(cumulated, mass - before, inclusive)
            tokens, before = tokens[digits == key], before + more
        return tokens, float(self._probabilities[tokens[0]]), before


def _cumulated(digits: NDArray[np.int32], masses: NDArray[np.float32], keys: int) -> NDArray[np.float64]:
    """Masses added up by digit, cumulated from the highest digit downwards: [keys]."""
    return np.bincount(digits, weights=masses, minlength=keys)[::-1].cumsum()


def _reached(cumulated: NDArray[np.float64], mass: float, inclusive: bool) -> tuple[int, float]:
    """The digit at which `mass` is exceeded (or, `inclusive`, reached), and the mass of all higher ones."""
    place = int(np.searchsorted(cumulated, mass, side="left" if inclusive else "right"))
    # Rounding can put the mass at the total or beyond, or at 0 or below: then the last or the first
    # digit of any mass is meant.
    place = min(place, int(np.searchsorted(cumulated, cumulated[-1], side="left")))
    place = max(place, int(np.searchsorted(cumulated, 0.0, side="right")))
    return len(cumulated) - 1 - place, float(cumulated[place - 1]) if place else 0.0
