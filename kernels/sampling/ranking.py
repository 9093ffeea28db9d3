"""Tokens in the order of their weights, without sorting them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEVELS = ((16, 1 << 15), (8, 1 << 8), (0, 1 << 8))
"""(shift, keys) of the digits of a weight, from the highest down."""


class Ranking:
    """The tokens of one row in descending order of weight, ties in ascending order of token.

    A sort of a large vocabulary takes more than ten milliseconds a row. Where weights are cumulated up to a given mass,
    only one place of that order is wanted, and a radix selection finds it in linear time: masses are added up by the
    weights' upper digit, then by the next one for the tokens with the wanted upper digit, and so on. What remains are
    tokens of equal weight. All sums are integers below 2^53, hence exact.

    Args:
        weights: [vocab] int32, none negative, at least one above 0.
    """

    def __init__(self, weights: NDArray[np.int32]) -> None:
        self._weights = weights
        self._upper = weights >> _LEVELS[0][0]
        self._cumulated = _cumulated(self._upper, weights, _LEVELS[0][1])

    @property
    def total(self) -> int:
        """The mass of all tokens."""
        return int(self._cumulated[-1])

    def token_at(self, mass: int) -> int:
        """The first token at which the cumulated mass exceeds `mass`, which must be less than the total."""
        ties, weight, before = self._ties(mass)
        return int(ties[(mass - before) // weight])

    def mass_through(self, mass: int) -> int:
        """The cumulated mass at the first token where it is at least `mass`, from 1 to the total."""
        _, weight, before = self._ties(mass - 1)
        return before + ((mass - 1 - before) // weight + 1) * weight

    def _ties(self, mass: int) -> tuple[NDArray[np.int64], int, int]:
        """The tokens of equal weight among which `mass` is exceeded, that weight, and the mass before them."""
        key, before = _exceeded(self._cumulated, mass)
        tokens = np.flatnonzero(self._upper == key)
        for shift, keys in _LEVELS[1:]:
            digits = (self._weights[tokens] >> shift) & (keys - 1)
            key, more = _exceeded(_cumulated(digits, self._weights[tokens], keys), mass - before)
            tokens, before = tokens[digits == key], before + more
        return tokens, int(self._weights[tokens[0]]), before


def _cumulated(digits: NDArray[np.int32], masses: NDArray[np.int32], keys: int) -> NDArray[np.float64]:
    """Masses added up by digit, cumulated from the highest digit downwards: [keys]."""
    return np.bincount(digits, weights=masses, minlength=keys)[::-1].cumsum()


def _exceeded(cumulated: NDArray[np.float64], mass: int) -> tuple[int, int]:
    """The digit at which `mass` is exceeded, and the mass of all higher ones."""
    place = int(np.searchsorted(cumulated, mass, side="right"))
    return len(cumulated) - 1 - place, int(cumulated[place - 1]) if place else 0
