"""Text to hashed n-grams: the router's features, without an encoder or beside one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SparseRow = tuple[NDArray[np.intp], NDArray[np.float32]]
"""Features of a text that are not 0: their places, [K] ascending, and values, [K]."""

_FIRST, _LAST = ord("0"), ord("9")
_SPACE = ord(" ")
_MULTIPLIER = np.uint32(0x01000193)  # FNV's prime
_MIXER = np.uint32(0x9E3779B1)  # 2^32 / golden ratio: spreads neighbouring hashes over the buckets
_INVERSE = np.uint32(pow(0x01000193, -1, 2**32))
_WORDS = 64  # keeps the hashes of word n-grams apart from those of byte n-grams of the same length
_IN_WORD = np.array([byte >= 128 or chr(byte).isalnum() or byte == ord("_") for byte in range(256)])


@dataclass(frozen=True)
class Featurizer:
    """Text to a vector of hashed byte n-grams and, if `words` is not 0, word n-grams.

    The text is lower-cased, runs of white space become one space, digits become "0" (a year is a year), and one
    space is put at either end so that n-grams see word boundaries. Each n-gram falls into one of 2^bits buckets and
    counts 1 + log(occurrences); n-grams of each kind have length 1 together, divided by √2 if there are two kinds.
    Words are runs of ASCII letters, digits, "_" and bytes above 127. Of a text longer than `window` bytes, the first
    and last halves of the window are read.

    Attributes:
        bits: log2 of the number of buckets.
        shortest, longest: lengths of the byte n-grams.
        window: bytes of a text that are read.
        words: the longest word n-gram; 0: none, as in routers of format 1.
    """

    bits: int = 14
    shortest: int = 3
    longest: int = 5
    window: int = 8192
    words: int = 0

    @property
    def size(self) -> int:
        """D, the number of buckets."""
        return 1 << self.bits

    @property
    def counted(self) -> int:
        """Features that count occurrences, the first ones: all."""
        return self.size

    def rows(self, texts: Sequence[str]) -> list[SparseRow]:
        """The features of each text; none for a text shorter than every n-gram."""
        return [self.nonzero(text) for text in texts]

    def nonzero(self, text: str) -> SparseRow:
        """The features of one text."""
        data = np.frombuffer(f" {' '.join(text.lower().split())} ".encode(), dtype=np.uint8)
        if len(data) > self.window:
            half = self.window // 2
            data = np.concatenate([data[:half], data[-half:]])
        data = np.where((data >= _FIRST) & (data <= _LAST), np.uint8(_FIRST), data)
        kinds = [self._byte_ngrams(data.astype(np.uint32))]
        if self.words:
            kinds.append(self._word_ngrams(data))
        parts = [_counted(hashes >> np.uint32(32 - self.bits)) for hashes in kinds if len(hashes)]
        if len(kinds) == 1 or not parts:
            return parts[0] if parts else (np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.float32))
        places, where = np.unique(np.concatenate([places for places, _ in parts]), return_inverse=True)
        values = np.bincount(where, weights=np.concatenate([values for _, values in parts]))
        return places, (values / np.sqrt(len(kinds))).astype(np.float32)

    def _byte_ngrams(self, data: NDArray[np.uint32]) -> NDArray[np.uint32]:
        rolling = np.zeros(len(data), dtype=np.uint32)
        hashes = [rolling[:0]]
        spaces = np.concatenate([[0], np.cumsum(data == _SPACE)])
        for length in range(1, min(self.longest, len(data)) + 1):
            rolling = rolling[: len(data) - length + 1] * _MULTIPLIER + data[length - 1 :]
            if length >= self.shortest:
                found = _mixed(rolling, length)
                if self.words:  # a space stands at its ends at most
                    found = found[spaces[length - 1 : len(data)] == spaces[1 : len(data) - length + 2]]
                hashes.append(found)
        return np.concatenate(hashes)

    def _word_ngrams(self, data: NDArray[np.uint8]) -> NDArray[np.uint32]:
        inside = np.concatenate([[False], _IN_WORD[data], [False]])
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        starts, ends = edges[::2], edges[1::2]
        # Σ over a word of byte · M^(distance to its start), for all words at once: a difference of running sums.
        powers = np.cumprod(np.full(len(data), _MULTIPLIER), dtype=np.uint32)
        sums = np.concatenate([np.zeros(1, dtype=np.uint32), np.cumsum(data * powers, dtype=np.uint32)])
        words = (sums[ends] - sums[starts]) * np.cumprod(np.full(len(data) + 1, _INVERSE), dtype=np.uint32)[starts]
        rolling = np.zeros(len(words), dtype=np.uint32)
        hashes = [rolling[:0]]
        for length in range(1, min(self.words, len(words)) + 1):
            rolling = rolling[: len(words) - length + 1] * _MIXER + words[length - 1 :]
            hashes.append(_mixed(rolling, _WORDS + length))
        return np.concatenate(hashes)


def _mixed(rolling: NDArray[np.uint32], salt: int) -> NDArray[np.uint32]:
    result: NDArray[np.uint32] = (rolling ^ (rolling >> np.uint32(15)) ^ np.uint32(salt)) * _MIXER
    return result


def _counted(buckets: NDArray[np.uint32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The buckets that occur, ascending, with 1 + log(occurrences), of length 1 together."""
    present, counts = np.unique(buckets, return_counts=True)
    weights = 1.0 + np.log(counts)
    return present.astype(np.intp), (weights / np.linalg.norm(weights)).astype(np.float32)
