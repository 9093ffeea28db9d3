"""What the entries of a sparse expert take in a file."""

import math
from collections.abc import Sequence

from merge.bundle.gaps import LONGEST
from merge.experts.storage import Storage


def entry_bytes(density: float, storage: Storage) -> float:
    """Bytes of an entry, with its column.

    Semantics: bf16: 4. int8: 2 (1 + f), f the fillers of distances over 255 between columns at random places,
    f = q / (1 − q) with q = (1 − density)²⁵⁵; 3 if that is less, as the writer has it

    Args:
        density: entries as a fraction of the weight's.
        storage: of the values.
    """
    if storage == "bf16":
        return 4.0
    far = math.exp(LONGEST * math.log1p(-density)) if density < 1 else 0.0
    return min(3.0, 2.0 / (1.0 - far))


def sparse_bytes(shapes: Sequence[tuple[int, int]], density: float, storage: Storage) -> float:
    """Bytes of the entries of weights [N, K], max(1, round(density · K)) in each row, with the scales of the rows."""
    scale = 2 if storage == "int8" else 0
    kept = [(rows, columns, max(1, round(density * columns))) for rows, columns in shapes]
    return sum(rows * (k * entry_bytes(k / columns, storage) + scale) for rows, columns, k in kept)


def density_for(shapes: Sequence[tuple[int, int]], room: int, storage: Storage) -> float:
    """The density whose entries take a number of bytes, by `sparse_bytes`.

    Raises:
        ValueError: not even one entry in each row fits.
    """
    least = sparse_bytes(shapes, 0.0, storage)
    if least > room:
        raise ValueError(
            f"experts.budget leaves {room:,} bytes for the entries, and one in each row takes {math.ceil(least):,}: "
            "set a larger budget, or form: low_rank"
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sparse_bytes(shapes, middle, storage) <= room else (low, middle)
    return max(low, 1e-9)
