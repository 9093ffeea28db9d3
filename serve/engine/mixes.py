"""Which experts the tokens of a step's chunks carry, as plain values that steps can be compared by."""

from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from kernels.expert_linear.tiles import NO_EXPERT
from serve.engine.scheduler import Chunk

Mix = tuple[int, tuple[int, ...], tuple[float, ...]]
"""A chunk's number of tokens, and their experts' slots and gates."""


def mix_of(chunk: Chunk) -> Mix:
    """The chunk's tokens, slots and gates."""
    sequence = chunk.sequence
    if sequence.lease is None:
        return chunk.count, (), ()
    return chunk.count, sequence.lease.slots, tuple(gate for _, gate in sequence.experts)


def slots_and_gates(mixes: Rows[Mix]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A row for each mix, as wide as the widest of them: slots, -1 for none, and gates."""
    width = max(len(found) for _, found, _ in mixes)
    slots = np.full((len(mixes), width), NO_EXPERT, dtype=np.int32)
    gates = np.ones((len(mixes), width), dtype=np.float32)
    for row, (_, found, weights) in enumerate(mixes):
        slots[row, : len(found)], gates[row, : len(found)] = found, weights
    return slots, gates
