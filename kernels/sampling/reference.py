"""Choosing tokens in plain torch: what the compiled kernel does, wherever it cannot run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import on_gpu
from kernels.sampling.penalties import penalise
from kernels.sampling.ranking import Ranking
from kernels.sampling.row import SamplingRow
from kernels.sampling.weights import UNIT, weights

NARROW = 256
"""Candidates that are tried first for top-p and min-p: enough except for flat distributions, and faster than a sort."""

WIDEST = 1024
"""Larger top-k are not sorted: for 1,024 of 151,936 tokens torch's topk took 0.7 ms a row, for 4,096 1.4."""

UNDECIDED = -1
"""Instead of a token: the host has to draw again, from more candidates."""

BLOCK = 1 << 18
"""Logits that are worked on together on a CPU.

With penalties, 64 draws from 151,936 tokens took 65 ms of CPU time row by row, and 179 ms all together.
"""


def sample_torch(logits: Tensor, numbers: Sequence[int], rows: Sequence[SamplingRow]) -> Tensor:
    """`sample` in plain torch, on any device."""
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    every = list(numbers) == list(range(len(logits)))
    for block in _blocks(logits, len(rows)):
        # All rows are a view: picking them by number would copy them, and the numbers to a GPU.
        picked, theirs = logits[block] if every else logits[list(numbers[block])], rows[block]
        some = picked.to(torch.float32, copy=every and any(row.seen is not None for row in theirs))
        penalise(some, theirs)
        tokens[block] = _chosen(some, theirs)
    return tokens


def sample_at_once(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """`sample` for all rows without waiting for the device, so that more can be launched behind it.

    Args:
        logits: [R, vocab] floating; not changed.
        rows: the settings of each row.

    Returns:
        [R] int64 on the logits' device: `UNDECIDED` for a row whose filters might keep more than `NARROW` candidates.
    """
    some = logits.to(torch.float32, copy=any(row.seen is not None for row in rows))
    penalise(some, rows)
    return _chosen(some, rows, waits=False)


def may_be_undecided(row: SamplingRow, vocab: int) -> bool:
    """Whether `sample_at_once` may leave a row to `sample`."""
    return bool(row.temperature) and not 0 < row.top_k < vocab and 0 < _width(row, vocab) < vocab


def _chosen(logits: Tensor, rows: Sequence[SamplingRow], waits: bool = True) -> Tensor:
    """Tokens [R] int64 for logits [R, vocab] float32 after penalties."""
    found = _highest(logits)
    drawing = [number for number, row in enumerate(rows) if row.temperature]
    if len(drawing) == len(rows):
        return draw(logits, rows, waits)
    if drawing:
        places = _places(drawing, logits.device)
        found[places] = draw(logits[places], [rows[number] for number in drawing], waits)
    return found


def draw(logits: Tensor, rows: Sequence[SamplingRow], waits: bool = True) -> Tensor:
    """Draw by inverting the cumulated weights at each row's own random number.

    Args:
        logits: [R, vocab] float32, after penalties.
        rows: one a row, each with a temperature above 0.
        waits: whether the host may wait for the device, to look at more candidates if that is needed.

    Returns:
        Tokens [R] int64.
    """
    device, vocab = logits.device, logits.shape[1]
    highest = logits.amax(dim=-1)
    usable = highest.isfinite()
    # A row without a distribution has token 0: all its weights are made equal here.
    if device.type != "cpu" or not bool(usable.all()):
        logits = torch.where(usable[:, None], logits, 0.0)
    scale = on_gpu.brought(torch.tensor([row.scale for row in rows], dtype=torch.float32), device)
    weight = weights(logits, torch.where(usable, highest, 0.0), scale)
    uniform = on_gpu.brought(torch.tensor([row.uniform for row in rows], dtype=torch.float64), device)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=device)
    widths = [_width(row, vocab) for row in rows]
    for width, group in groupby(sorted(range(len(rows)), key=lambda number: widths[number]), key=widths.__getitem__):
        numbers = list(group)
        places = _places(numbers, device)
        some = weight if len(numbers) == len(rows) else weight[places]
        if width == 0:
            cumulated = some.cumsum(dim=-1, dtype=torch.int64)
            tokens[places] = _invert(cumulated, cumulated[:, -1], uniform[places])
        else:
            theirs = [rows[number] for number in numbers]
            tokens[places] = _draw_filtered(some, uniform[places], theirs, width, waits)
    return torch.where(usable, tokens, 0)


def draw_ranked(
    weight: NDArray[np.int32], uniform: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> int:
    """Draw from one row's candidates in descending order of weight, ties in ascending order of token.

    Each filter keeps a first part of that order, so that together they keep the shortest of those parts.

    Args:
        weight: [vocab] from 0 to `UNIT`, which the highest is.
        uniform: place in the candidates' mass at which the token is drawn, in [0, 1).
        top_k: as in `SamplingRow`.
        top_p: likewise.
        min_p: likewise.
    """
    ranking = Ranking(weight)
    kept = whole = ranking.total
    if 0 < top_k < len(weight):
        first = len(weight) - top_k
        kept = whole = int(np.partition(weight, first)[first:].sum(dtype=np.int64))
    if top_p < 1.0:
        kept = min(kept, ranking.mass_through(int(np.ceil(top_p * whole))))
    if min_p > 0.0:
        kept = min(kept, int(weight[weight >= np.ceil(min_p * UNIT)].sum(dtype=np.int64)))
    return ranking.token_at(min(int(uniform * kept), kept - 1))


def _width(row: SamplingRow, vocab: int) -> int:
    """How many of the most likely tokens can be candidates; 0: all of them, in order of token."""
    if 0 < row.top_k < vocab:
        return row.top_k
    return min(NARROW, vocab) if row.top_p < 1.0 or row.min_p > 0.0 else 0


def _draw_filtered(
    weight: Tensor, uniform: Tensor, rows: Sequence[SamplingRow], width: int, waits: bool = True
) -> Tensor:
    """Top-k, top-p and min-p, in this order, on the `width` most likely tokens; on all if those do not suffice."""
    device, vocab = weight.device, weight.shape[1]
    if width > WIDEST and device.type == "cpu":
        settings = zip(weight.numpy(), uniform.tolist(), rows, strict=True)
        return torch.tensor([draw_ranked(one, u, row.top_k, row.top_p, row.min_p) for one, u, row in settings])
    # One key for weight and token: which of equal values topk gives first is not defined.
    keys = (weight.to(torch.int64) << 32) - torch.arange(vocab, device=device)
    ids = keys.topk(width, dim=-1).indices
    values = weight.gather(1, ids).to(torch.int64)
    by_top_k = on_gpu.brought(torch.tensor([0 < row.top_k < vocab for row in rows]), device)
    whole = torch.where(by_top_k, values.sum(dim=-1), weight.sum(dim=-1, dtype=torch.int64))
    top_p, min_p = (
        on_gpu.brought(torch.tensor(share, dtype=torch.float64), device)
        for share in ([row.top_p for row in rows], [row.min_p for row in rows])
    )
    cumulated = values.cumsum(dim=-1)
    below = cumulated - values < (top_p * whole).ceil().to(torch.int64)[:, None]
    kept = below & (values >= (min_p * UNIT).ceil().to(torch.int64)[:, None])
    mass = (values * kept).sum(dim=-1)
    tokens = ids.gather(1, _invert(cumulated, mass, uniform)[:, None]).squeeze(1)
    if width < vocab:
        # If the least likely candidate is still kept, tokens that were not tried may have to be kept, too.
        more = kept[:, -1] & ~by_top_k
        if not waits:
            return torch.where(more, UNDECIDED, tokens)
        open_ended = more.nonzero().squeeze(1).tolist()
        if open_ended:
            some = weight if len(open_ended) == len(rows) else weight[open_ended]
            theirs = [rows[number] for number in open_ended]
            tokens[open_ended] = _draw_filtered(some, uniform[open_ended], theirs, vocab)
    return tokens


def _invert(cumulated: Tensor, mass: Tensor, uniform: Tensor) -> Tensor:
    """First position whose cumulated weight exceeds `uniform` of a mass: [R, n], [R] and [R] to [R] int64."""
    target = torch.minimum((uniform * mass).to(torch.int64), mass - 1)  # the product may be rounded up to the mass
    return torch.searchsorted(cumulated, target[:, None], right=True).squeeze(1)


def _places(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Numbers of rows as a tensor: torch would wait for a GPU to bring a list there."""
    return on_gpu.brought(torch.tensor(numbers, dtype=torch.int64), device)


def _highest(logits: Tensor) -> Tensor:
    """The first highest of each row: [R, vocab] to [R] int64."""
    # For 8 rows of 16,000 numpy took 12 us, torch's argmax on the CPU 98.
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(dim=-1)


def _blocks(logits: Tensor, rows: int) -> Iterator[slice]:
    """Rows that are worked on together: on the CPU as many as stay in its caches, which also bounds the memory."""
    size = max(1, BLOCK // logits.shape[1]) if logits.device.type == "cpu" else max(1, rows)
    return (slice(first, first + size) for first in range(0, rows, size))
