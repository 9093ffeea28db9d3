"""Several integers in one int32, as `compressed-tensors` packs them along a row.

Words are little-endian in memory, as on every processor that torch has wheels for.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

WORD = 32
"""Bits of what is packed into."""


def packed_columns(columns: int, bits: int) -> int:
    """The number of words that a row of integers takes."""
    return -(-columns * bits // WORD)


def pack(value: Tensor, bits: int) -> Tensor:
    """Pack a matrix.

    Semantics: word[n, w] = Σ_i (value[n, w · 32 / bits + i] + 2^(bits−1)) · 2^(bits · i); 0 after the last column

    Args:
        value: [N, K] int8 within the range of `bits`.
        bits: 8 or 4.

    Returns:
        [N, ⌈K · bits / 32⌉] int32.
    """
    unsigned = (value.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    unsigned = F.pad(unsigned, (0, -value.shape[1] % (WORD // bits)))
    if bits == 4:
        unsigned = unsigned[:, 0::2] | unsigned[:, 1::2] << 4
    return unsigned.contiguous().view(torch.int32)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """What `pack` packed: [N, columns] int8.

    Args:
        packed: [N, ⌈columns · bits / 32⌉] int32.
        bits: 8 or 4.
        columns: K.
    """
    unsigned = packed.contiguous().view(torch.uint8)
    if bits == 4:
        unsigned = torch.stack((unsigned & 15, unsigned >> 4), dim=2).flatten(1)
    return (unsigned[:, :columns].to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
