"""The tokens of a step in tiles of one expert each: what the programs of a GPU's kernels work on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_EXPERT = -1
"""The slot of a token without an expert."""
TILE = 16
"""The most tokens of a tile: the fewest rows that a tensor core multiplies."""

WORDS = 4
"""Numbers of a tile in `Tiles.table`, the last of which is not used: a column's first tile is then 16-byte aligned."""


PROGRAMS = 2048
"""About how many programs a launch has at most: 15 for each of the 132 processors of an H100 or H200.

A program works on one tile after another, so that a captured launch, which has room for as many tiles as tokens, does
not start a program for each that a step leaves empty.
"""


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles for each column of `slots`.

    Every token is in one tile of each column, those without an expert there in tiles of slot -1, so that a launch over
    a column writes every token's result once.

    Attributes:
        table: `[m, n, 4]` int32: of each tile its slot, its first place in the two below, and how many tokens it has,
            at most `TILE`. Tiles without tokens follow those with some.
        token: `[m, T]` int32 positions in the batch, ascending inside a tile. Places of no tile may be anything.
        gate: `[m, T]` fp32.
    """

    table: Tensor
    token: Tensor
    gate: Tensor

    @property
    def most(self) -> int:
        """Tiles that a column has room for."""
        return self.table.shape[1]

    @classmethod
    def of(cls, slots: Tensor, gates: Tensor, device: torch.device) -> Tiles:
        """The tiles of a plan.

        Args:
            slots: `[T, m]` int32 on the host, -1 for none.
            gates: `[T, m]` fp32 on the host.
            device: the device that they are copied to, in one copy.
        """
        numbers, weights = slots.numpy(), gates.numpy()
        tokens, columns = numbers.shape
        made = [_column(numbers[:, column]) for column in range(columns)]
        most = max((len(table) for table, _ in made), default=0)
        flat = np.zeros(_words(columns, most, tokens), dtype=np.int32)
        table, token, gate = _parts(torch.from_numpy(flat), columns, most, tokens)
        for column, (rows, order) in enumerate(made):
            table[column, : len(rows), :3] = torch.from_numpy(rows)
            token[column, : len(order)] = torch.from_numpy(order)
            gate[column, : len(order)] = torch.from_numpy(weights[order, column])
        return cls(*_parts(torch.from_numpy(flat).to(device), columns, most, tokens))

    @classmethod
    def over(cls, buffer: Tensor, columns: int, tokens: int) -> Tiles:
        """Space for the tiles of any plan of this many tokens, in `words(columns, tokens)` int32 of a buffer."""
        return cls(*_parts(buffer, columns, tokens, tokens))

    @staticmethod
    def words(columns: int, tokens: int) -> int:
        """How many int32 `over` takes."""
        return _words(columns, tokens, tokens)

    def fill(self, tiles: Tiles) -> None:
        """Lay other tiles into these; tokens and columns that those do not have get tiles of slot -1.

        Args:
            tiles: of no more columns and tokens; on the host, as these are.
        """
        columns, tokens = tiles.token.shape
        self.table.zero_()
        self.table[:columns, : tiles.most] = tiles.table
        self.token[:columns, :tokens] = tiles.token
        self.gate[:columns, :tokens] = tiles.gate
        used = (tiles.table[:, :, 2] > 0).sum(dim=1).tolist()
        for column in range(self.table.shape[0]):
            first, place = (tokens, used[column]) if column < columns else (0, 0)
            self.token[column, first:] = torch.arange(first, self.token.shape[1], dtype=torch.int32)
            for start in range(first, self.token.shape[1], TILE):
                count = min(TILE, self.token.shape[1] - start)
                self.table[column, place] = torch.tensor([NO_EXPERT, start, count, 0], dtype=torch.int32)
                place += 1


def tile_programs(row_tiles: int, tiles: int) -> int:
    """Programs along the tiles of a launch, at most one for each tile of rows."""
    return max(1, min(tiles, PROGRAMS // row_tiles))


def _column(slots: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Slot, first place and count of each tile, and the tokens in order."""
    order = np.argsort(slots, kind="stable").astype(np.int32)
    own = slots[order]
    starts = np.flatnonzero(np.diff(own, prepend=NO_EXPERT - 1))
    ends = np.append(starts, len(own))[1:]
    rows = [
        (own[start], first, min(TILE, end - first))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        for first in range(start, end, TILE)
    ]
    return np.array(rows, dtype=np.int32).reshape(-1, 3), order


def _words(columns: int, most: int, tokens: int) -> int:
    return columns * most * WORDS + 2 * _aligned(columns * tokens)


def _aligned(size: int) -> int:
    """The size, rounded up so that the next tensor is aligned to 16 bytes: Triton recompiles for other pointers."""
    return -(-size // 4) * 4


def _parts(flat: Tensor, columns: int, most: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    size, places = columns * most * WORDS, columns * tokens
    table, token, gate = torch.split(flat, [size, _aligned(places), _aligned(places)])
    return (
        table.view(columns, most, WORDS),
        token[:places].view(columns, tokens),
        gate[:places].view(torch.float32).view(columns, tokens),
    )
