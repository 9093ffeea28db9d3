"""Tokens that the device draws while the host goes on, and the step that is launched behind them."""

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import on_gpu
from kernels.sampling import UNDECIDED, may_be_undecided, sample_at_once
from serve.engine.request import TokenOutput
from serve.engine.runner import Runner
from serve.engine.sampler import sample
from serve.engine.scheduler import Chunk, Scheduler
from serve.engine.sequence import Sequence


@dataclass(frozen=True)
class Draws:
    """Draws of one step, on their way to the host.

    Attributes:
        rows: of each sequence its row, and the position that its token was drawn behind.
        tokens: [R] int64 on the device; `UNDECIDED` in rows that the host has to draw.
        logits: [R, vocab], kept if that may be; otherwise None.
        host: [R] int64 on the host, complete after `arrived`.
        arrived: None if there is nothing to wait for.
    """

    rows: Mapping[Sequence, tuple[int, int]]
    tokens: Tensor
    logits: Tensor | None
    host: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def begin(cls, logits: Tensor, chunks: Rows[Chunk]) -> "Draws":
        """Draw a token for each chunk's sequence without waiting for the device.

        Args:
            logits: [chunks, vocab]; may be overwritten afterwards.
            chunks: of sequences whose draws are `free`.
        """
        rows = [chunk.sequence.sampling.row(ahead=int(chunk.ahead > 0)) for chunk in chunks]
        kept = logits.clone() if any(may_be_undecided(row, logits.shape[1]) for row in rows) else None
        tokens, arrived = sample_at_once(logits, rows), None
        if tokens.is_cuda:
            host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            host.copy_(tokens, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        else:
            host = tokens
        last = [chunk.position + chunk.count - 1 for chunk in chunks]
        places = {chunk.sequence: place for chunk, place in zip(chunks, enumerate(last), strict=True)}
        return cls(places, tokens, kept, host, arrived)

    def covers(self, chunk: Chunk) -> bool:
        """Whether a planned chunk has been launched already."""
        place = self.rows.get(chunk.sequence)
        return place is not None and chunk.draws and chunk.count == 1 and place[1] == chunk.position

    def read(self, sequences: Rows[Sequence]) -> tuple[dict[Sequence, TokenOutput], set[Sequence]]:
        """Wait for the tokens of some sequences.

        Returns:
            The tokens, and those sequences for which the device had none.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        tokens, found, undecided = self.host.tolist(), {}, set()
        for sequence in sequences:
            row = self.rows[sequence][0]
            if tokens[row] != UNDECIDED:
                found[sequence] = TokenOutput(tokens[row])
                continue
            assert self.logits is not None
            undecided.add(sequence)
            found[sequence] = sample(self.logits[row : row + 1], [sequence.sampling], ())[0]
        return found, undecided

    def without(self, sequences: set[Sequence]) -> "Draws":
        """The draws of the other sequences."""
        rows = {sequence: place for sequence, place in self.rows.items() if sequence not in sequences}
        return Draws(rows, self.tokens, self.logits, self.host, self.arrived)


def followers(chunks: Rows[Chunk], scheduler: Scheduler, max_model_len: int) -> list[Chunk]:
    """What the next step computes whatever this one draws; nothing if that is not known.

    A sequence that its next token ends by its length is not among them. One that ends otherwise is computed for
    nothing. Blocks are reserved.

    Args:
        chunks: this step's.
        scheduler: which has the blocks.
        max_model_len: longest sequence.
    """
    if not all(chunk.draws and chunk.sequence.sampling.free for chunk in chunks):
        return []
    going = [
        Chunk(chunk.sequence, 1, True, False, ahead=chunk.count)
        for chunk in chunks
        if chunk.sequence.generated + 1 < chunk.sequence.request.params.max_tokens
        and len(chunk.sequence.tokens) + 1 < max_model_len
    ]
    return going if all(scheduler.reserve(chunk.sequence) for chunk in going) else []


def follow(runner: Runner, chunks: Rows[Chunk], drawn: Rows[Draws]) -> Draws | None:
    """Launch the step of `followers`, and its draws; None if it has to wait for the host.

    Args:
        runner: computes it.
        chunks: of sequences that are in one of `drawn`.
        drawn: the draws whose tokens it computes.
    """
    tokens, first = torch.cat([draws.tokens for draws in drawn]), 0
    order: dict[Sequence, int] = {}
    for draws in drawn:
        order |= {sequence: first + row for sequence, (row, _) in draws.rows.items()}
        first += len(draws.tokens)
    wanted = [order[chunk.sequence] for chunk in chunks]
    if wanted != list(range(len(tokens))):
        tokens = tokens[on_gpu.brought(torch.tensor(wanted, dtype=torch.int64), tokens.device)]
    logits = runner.follow(chunks, tokens)
    return None if logits is None else Draws.begin(logits, chunks)
