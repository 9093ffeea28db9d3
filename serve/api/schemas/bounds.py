"""How large a JSON document may be before it is read: the number of its values, counted without making any of them.

Parsing holds Python's global lock, so that nothing else in the process runs meanwhile, the event loop included. The
time depends on the number of values far more than on the number of bytes: 16 MB of text take a few milliseconds, 16 MB
of `[1],[1],…` take seconds.
"""

import numpy as np
import numpy.typing as npt

_BYTES_PER_VALUE = 32
_FLOOR = 65_536

MAX_DEPTH = 200
"""Nested lists and objects; the parser's own limit."""

MAX_DIGITS = 4300
"""Of a whole number; the parser's own limit."""


def most_values(max_bytes: int) -> int:
    """JSON values that a body may hold where it may hold `max_bytes` bytes."""
    return max(_FLOOR, max_bytes // _BYTES_PER_VALUE)


def holds_more_values(raw: bytes, most: int) -> bool:
    """Whether a JSON document holds more than `most` values.

    A key and its value count as one, an empty list or object as two.
    Each value but the first follows a comma or opens a list or an object. These characters within strings count only
    where that decides.
    """
    if len(raw) <= most:
        return False
    data = np.frombuffer(raw, dtype=np.uint8)
    if _openings(data).sum() < most:
        return False
    # A pair of backslashes first, from the left, so that what remains before a quotation mark escapes it.
    unescaped = np.frombuffer(raw.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    within_string = np.bitwise_xor.accumulate(unescaped == ord('"'))
    return bool((_openings(unescaped) & ~within_string).sum() >= most)


def _openings(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    openings: npt.NDArray[np.bool_] = (data == ord(",")) | (data == ord("[")) | (data == ord("{"))
    return openings
