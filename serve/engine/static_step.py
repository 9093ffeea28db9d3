"""A decoding step whose shapes are those of a bucket and whose inputs have fixed addresses."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention import PaddedDecodes
from kernels.expert_linear import ExpertBatch
from kernels.expert_linear.tiles import Tiles
from serve.engine.mixes import Mix, mix_of, slots_and_gates
from serve.engine.scheduler import Chunk
from serve.model import Decoder, ForwardBatch, KvCache

_ALIGNED = 4
"""Inputs begin at multiples of 16 bytes, as separate tensors do: Triton compiles a second version for others."""


_DRAWN = -1
"""Instead of a token that the device has drawn and the host does not know."""

NOBODY: tuple[Mix, ...] = ((1, (), ()),)
"""The experts of a step without sequences."""


@dataclass(frozen=True)
class Bucket:
    """What steps have in common that can use one captured step.

    Attributes:
        sequences: the most, each of one token.
        context: the most tokens of a sequence, this step's included.
        experts: the most experts of a token; 0: the plain step, without any or with one patched into the weights.
    """

    sequences: int
    context: int
    experts: int


@dataclass(frozen=True)
class _Inputs:
    """Parts of one buffer, so that a step copies all of them at once.

    Attributes:
        tokens, positions: [n] int32.
        tables: [n, blocks] int32, the cache's blocks of each sequence.
        experts: which tokens have which experts, or None in a plain step.
    """

    tokens: Tensor
    positions: Tensor
    tables: Tensor
    experts: Callable[[], ExpertBatch] | None

    @classmethod
    def of(cls, buffer: Tensor, bucket: Bucket, blocks: int) -> "_Inputs":
        """The parts of a buffer of as many int32 as `_words` says."""
        n, parts = bucket.sequences, _split(buffer, _sizes(bucket, blocks))
        tokens, positions, tables = next(parts), next(parts), next(parts).view(n, blocks)
        if not bucket.experts:
            return cls(tokens, positions, tables, None)
        slots, gates = next(parts).view(n, -1), next(parts).view(torch.float32).view(n, -1)
        groups, gate = (next(parts), next(parts), next(parts)), next(parts).view(torch.float32)
        tiles = Tiles.over(next(parts), bucket.experts, n)
        # Made at each use, because a batch caches values that it computed from its tensors.
        return cls(tokens, positions, tables, lambda: ExpertBatch.over(slots, gates, *groups, gate, tiles))


def _split(buffer: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    first = 0
    for size in sizes:
        yield buffer[first : first + size]
        first += _aligned(size)


def _sizes(bucket: Bucket, blocks: int) -> list[int]:
    """Tokens, positions, tables; slots, gates, the groups' slots, starts, tokens and gates, and the tiles."""
    n, pairs = bucket.sequences, bucket.sequences * bucket.experts
    return [n, n, n * blocks, pairs, pairs, pairs, pairs + 1, pairs, pairs, Tiles.words(bucket.experts, n)]


def _words(bucket: Bucket, blocks: int) -> int:
    return sum(map(_aligned, _sizes(bucket, blocks)))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


class StaticStep:
    """A step of up to a bucket's sequences, one token each.

    Rows without a sequence are separate sequences: token 0 at position 0, in the spare block, without experts.
    They attend to their own key, and their results are discarded.
    """

    def __init__(self, bucket: Bucket, decoder: Decoder, cache: KvCache, block_size: int, logits: Tensor) -> None:
        """Make room for the inputs.

        Args:
            bucket: the shapes.
            decoder: the model.
            cache: with a spare block at its end.
            block_size: tokens in a block.
            logits: [sequences, vocab] takes the results.
        """
        self._bucket, self._decoder, self._cache, self._block_size = bucket, decoder, cache, block_size
        self._logits, self._spare = logits, cache.keys[0].shape[0] - 1
        self._blocks = -(-bucket.context // block_size)
        size, pinned = _words(bucket, self._blocks), decoder.device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
        self._device = torch.zeros(size, dtype=torch.int32, device=decoder.device)
        self._given = _Inputs.of(self._host, bucket, self._blocks)
        self._read = _Inputs.of(self._device, bucket, self._blocks)
        self._tokens, self._positions = self._given.tokens.numpy(), self._given.positions.numpy()
        self._tables = self._given.tables.numpy()
        self._laid: list[tuple[Rows[int], int]] = [((), 0)] * bucket.sequences
        self._mixes: tuple[Mix, ...] | None = None
        self._drawn = torch.zeros(bucket.sequences, dtype=torch.int64, device=decoder.device)
        self._arrived: torch.cuda.Event | None = None

    def fill(self, chunks: Rows[Chunk], drawn: Tensor | None = None) -> None:
        """Bring a step's inputs to the device; none of any sequence, to capture a step before it comes.

        Args:
            chunks: of one token each.
            drawn: [chunks] int64 on the device, the tokens of chunks that are `ahead`; all of them are, or none.
        """
        if self._arrived is not None:
            self._arrived.synchronize()  # the inputs of the step before have been read
        count = len(chunks)
        if drawn is not None:
            self._drawn[:count].copy_(drawn)
        for row, chunk in enumerate(chunks):
            sequence = chunk.sequence
            self._tokens[row] = _DRAWN if chunk.ahead else sequence.tokens[chunk.position]
            self._positions[row] = chunk.position
            self._lay(row, sequence.blocks)
        self._tokens[count:] = self._positions[count:] = 0
        self._tables[count:, 0] = self._spare
        self._laid[count:] = [((), 0)] * (len(self._laid) - count)
        if self._given.experts is not None:
            mixes = tuple(map(mix_of, chunks)) or NOBODY
            # While the same sequences decode, step after step has the same plan.
            if mixes != self._mixes:
                slots, gates = slots_and_gates(mixes)
                plan = ExpertBatch.from_slots(torch.from_numpy(slots), torch.from_numpy(gates))
                self._given.experts().fill(plan)
                self._mixes = mixes
        self._device.copy_(self._host, non_blocking=True)
        if self._device.is_cuda:
            self._arrived = self._arrived or torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def _lay(self, row: int, blocks: list[int]) -> None:
        """Bring a sequence's blocks into its row: all of them, or those that it got since it was last in this row.

        A sequence's list only grows; one that loses its blocks gets another list.
        """
        before, known = self._laid[row]
        first, last = (known if before is blocks else 0), min(len(blocks), self._blocks)
        if first < last:
            self._tables[row, first:last] = blocks[first:last]
        self._laid[row] = blocks, last

    def compute(self) -> None:
        """The step, from the inputs on the device to the logits, without the host's knowing any of them."""
        read, size = self._read, self._block_size
        positions, tables = read.positions.to(torch.int64), read.tables
        block = tables.gather(1, (positions // size)[:, None])[:, 0].to(torch.int64)
        lengths = positions + 1
        given = read.tokens.to(torch.int64)
        batch = ForwardBatch(
            tokens=torch.where(given == _DRAWN, self._drawn.clamp(min=0), given),
            positions=positions,
            slot_mapping=block * size + positions % size,
            attention={
                window: PaddedDecodes.over(tables, lengths, self._bucket.context, size, window)
                for window in self._decoder.windows
            },
            experts=None if read.experts is None else read.experts(),
        )
        hidden = self._decoder.forward(batch, self._cache)
        self._logits.copy_(self._decoder.logits(hidden, batch.experts))
