"""The sequences of a step's attention and the places of their keys, computed once for all layers of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class DecodeGroup:
    """Sequences with one query token each and contexts of similar length, attended together.

    Attributes:
        tokens: `[n]` int64 rows of the query.
        places: `[n * longest]` int64 rows of the flattened cache, sequence by sequence, padded with place 0.
        visible: `[n, 1, 1, longest]` bool, False for padding and for keys before the sliding window.
    """

    tokens: Tensor
    places: Tensor
    visible: Tensor


@dataclass(frozen=True)
class AttentionBatch:
    """The sequences of one step, flattened into T query tokens.

    Attributes:
        block_tables: `[B, max_blocks]` int32, the cache blocks of each sequence in order; unused entries are ignored.
        context_lens: tokens of each sequence in the cache, those of this step included.
        query_lens: tokens of each sequence in this step, the last ones of its context.
        query_start: B + 1 offsets of the sequences in the flattened query.
        block_size: tokens in a cache block.
        window: a token sees itself and the window - 1 tokens before it; None for all.
    """

    block_tables: Tensor
    context_lens: tuple[int, ...]
    query_lens: tuple[int, ...]
    query_start: tuple[int, ...]
    block_size: int
    window: int | None

    @property
    def tokens(self) -> int:
        """Query tokens of the step."""
        return self.query_start[-1]

    @classmethod
    def build(
        cls,
        block_tables: Tensor,
        context_lens: Sequence[int],
        query_lens: Sequence[int],
        block_size: int,
        window: int | None = None,
    ) -> AttentionBatch:
        """Plan a step.

        Raises:
            ValueError: lengths do not fit each other or the block tables.
        """
        contexts, queries = tuple(context_lens), tuple(query_lens)
        if block_tables.dim() != 2 or not len(contexts) == len(queries) == block_tables.shape[0]:
            raise ValueError(
                f"block_tables {list(block_tables.shape)}, {len(contexts)} context lengths and {len(queries)} query "
                "lengths must be of the same number of sequences"
            )
        if window is not None and window < 1:
            raise ValueError(f"a sliding window holds at least 1 token, not {window}")
        capacity = block_tables.shape[1] * block_size
        for sequence, (context, query) in enumerate(zip(contexts, queries, strict=True)):
            if not 1 <= query <= context <= capacity:
                raise ValueError(
                    f"sequence {sequence} has {query} query and {context} context tokens; "
                    f"needed: 1 <= query <= context <= {capacity}, what its block table holds"
                )
        return cls(
            block_tables.to(torch.int32).contiguous(), contexts, queries, (0, *accumulate(queries)), block_size, window
        )

    def places(self, sequence: int, first: int = 0) -> Tensor:
        """Rows of the flattened cache that hold one sequence's tokens, from token `first` on: int64."""
        token = torch.arange(first, self.context_lens[sequence], device=self.block_tables.device)
        block = self.block_tables[sequence].to(torch.int64)[token // self.block_size]
        return block * self.block_size + token % self.block_size

    @cached_property
    def rows(self) -> Tensor:
        """Each query token's row, sequence, first token that it sees, and last one + 1; `[T, 4]` int32."""
        # In numpy, because these are a few numbers and each of torch's operations takes microseconds.
        counts = np.array(self.query_lens)
        rows = np.empty((self.tokens, 4), dtype=np.int32)
        rows[:, 0] = np.arange(self.tokens)
        rows[:, 1] = np.arange(len(counts)).repeat(counts)
        seen_by_first = np.array(self.context_lens) - counts + 1 - np.array(self.query_start[:-1])
        rows[:, 3] = rows[:, 0] + seen_by_first.repeat(counts)
        rows[:, 2] = 0 if self.window is None else np.maximum(rows[:, 3] - self.window, 0)
        return torch.from_numpy(rows)

    @property
    def most_queries(self) -> int:
        """The most query tokens of a sequence."""
        return max(self.query_lens)

    @property
    def longest(self) -> int:
        """The most tokens of a sequence in the cache."""
        return max(self.context_lens)

    @cached_property
    def starts(self) -> Tensor:
        """`query_start` on the device of the block tables: `[B + 1]` int32."""
        return torch.tensor(self.query_start, dtype=torch.int32).to(self.block_tables.device)

    @cached_property
    def lengths32(self) -> Tensor:
        """`context_lens` on the device of the block tables: `[B]` int32."""
        return torch.tensor(self.context_lens, dtype=torch.int32).to(self.block_tables.device)

    @cached_property
    def prefills(self) -> tuple[tuple[int, Tensor, Tensor], ...]:
        """Sequences of several query tokens: number, cache rows, and what each query sees, `[query, keys]` bool."""
        return tuple(
            (sequence, self.places(sequence, self._first_seen(sequence)), self._visible(sequence))
            for sequence, length in enumerate(self.query_lens)
            if length > 1
        )

    @cached_property
    def decodes(self) -> tuple[DecodeGroup, ...]:
        """Sequences of one query token, grouped so that padding at most doubles what a group reads."""
        seen = {
            sequence: self.context_lens[sequence] - self._first_seen(sequence)
            for sequence, length in enumerate(self.query_lens)
            if length == 1
        }
        groups: list[list[int]] = []
        for sequence in sorted(seen, key=lambda sequence: -seen[sequence]):
            if groups and 2 * seen[sequence] >= seen[groups[-1][0]]:
                groups[-1].append(sequence)
            else:
                groups.append([sequence])
        return tuple(self._decode_group(group, seen[group[0]]) for group in groups)

    def _decode_group(self, sequences: list[int], longest: int) -> DecodeGroup:
        device = self.block_tables.device
        return _decode_group(
            torch.tensor([self.query_start[sequence] for sequence in sequences], device=device),
            self.block_tables[torch.tensor(sequences, device=device)],
            torch.tensor([self._first_seen(sequence) for sequence in sequences], device=device),
            torch.tensor([self.context_lens[sequence] for sequence in sequences], device=device),
            longest,
            self.block_size,
        )

    def _first_seen(self, sequence: int) -> int:
        if self.window is None:
            return 0
        return max(0, self.context_lens[sequence] - self.query_lens[sequence] + 1 - self.window)

    def _visible(self, sequence: int) -> Tensor:
        context, query = self.context_lens[sequence], self.query_lens[sequence]
        device = self.block_tables.device
        own = torch.arange(context - query, context, device=device)[:, None]
        key = torch.arange(self._first_seen(sequence), context, device=device)
        visible = key <= own
        return visible if self.window is None else visible & (key > own - self.window)


@dataclass(frozen=True)
class PaddedDecodes(AttentionBatch):
    """Sequences of one query token each whose lengths only the device knows.

    Shapes follow `longest` alone and nothing is read back, so that what was captured for one step (`context_lens` are
    its bounds) can be replayed for every other step of no longer contexts.

    Attributes:
        lengths: `[B]` int64 tokens of each sequence in the cache, this step's included: 1 to `longest`.
    """

    lengths: Tensor

    @classmethod
    def over(
        cls, block_tables: Tensor, lengths: Tensor, longest: int, block_size: int, window: int | None = None
    ) -> PaddedDecodes:
        """Plan a step from tensors whose values may change before each use of the plan.

        Args:
            block_tables: `[B, max_blocks]` int32. Entries beyond a sequence's length may be anything.
            lengths: `[B]` int64.
            longest: the most tokens of a sequence.
            block_size: tokens in a cache block.
            window: a token sees itself and the window - 1 tokens before it; None for all.

        Raises:
            ValueError: shapes do not fit each other, or the tables do not hold the longest sequence.
        """
        sequences = block_tables.shape[0]
        if lengths.shape != (sequences,):
            raise ValueError(f"lengths must be [{sequences}] as the block tables, not {list(lengths.shape)}")
        plan = AttentionBatch.build(block_tables, [longest] * sequences, [1] * sequences, block_size, window)
        return cls(plan.block_tables, plan.context_lens, plan.query_lens, plan.query_start, block_size, window, lengths)

    @cached_property
    def rows(self) -> Tensor:
        """Each query token's row, sequence, first token that it sees, and last one + 1; `[T, 4]` int32."""
        number = torch.arange(self.tokens, device=self.lengths.device)
        return torch.stack([number, number, self._firsts, self.lengths], dim=1).to(torch.int32)

    @cached_property
    def starts(self) -> Tensor:
        """Each sequence has one query token: `[B + 1]` int32."""
        return torch.arange(self.tokens + 1, dtype=torch.int32, device=self.lengths.device)

    @cached_property
    def lengths32(self) -> Tensor:
        """The lengths as they are on the device: `[B]` int32."""
        return self.lengths.to(torch.int32)

    @cached_property
    def decodes(self) -> tuple[DecodeGroup, ...]:
        """All sequences in one group, padded to the longest that a sequence may see."""
        longest = self.context_lens[0] if self.window is None else min(self.context_lens[0], self.window)
        tokens = torch.arange(self.tokens, device=self.lengths.device)
        group = _decode_group(tokens, self.block_tables, self._firsts, self.lengths, longest, self.block_size)
        return (group,)

    @property
    def _firsts(self) -> Tensor:
        return torch.zeros_like(self.lengths) if self.window is None else (self.lengths - self.window).clamp(min=0)


def _decode_group(
    tokens: Tensor, block_tables: Tensor, first: Tensor, context: Tensor, longest: int, block_size: int
) -> DecodeGroup:
    """Sequences that see their tokens `first` to `context`, each `[n]` int64; on the device alone."""
    token = first[:, None] + torch.arange(longest, device=first.device)
    visible = token < context[:, None]
    token = torch.where(visible, token, 0)
    block = block_tables.to(torch.int64).gather(1, token // block_size)
    places = torch.where(visible, block * block_size + token % block_size, 0)
    return DecodeGroup(tokens, places.reshape(-1), visible[:, None, None, :])
