"""Drawing tokens: temperature, top-k, top-p and min-p, then a place in the cumulated probabilities."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve.engine.ranking import Ranking
from serve.engine.request import SamplingParams

NARROW = 256
"""Candidates looked at first for top-p and min-p: enough for all but flat distributions, and much less than a sort."""

WIDEST = 1024
"""Larger top-k are not sorted: for 1,024 of 151,936 tokens torch's topk took 0.7 ms a row, for 4,096 1.4."""


def draw(logits: Tensor, params: Sequence[SamplingParams], uniform: Sequence[float]) -> Tensor:
    """Draw by inverting the cumulated probabilities at each row's own random number.

    A row's result depends on that row alone. Candidates are in descending order of probability where any filter is set,
    in order of token where none is.

    Args:
        logits: [R, vocab] float32.
        params: one a row, none greedy.
        uniform: one number in [0, 1) a row.

    Returns:
        Tokens [R] int64.
    """
    device, vocab = logits.device, logits.shape[1]
    temperatures = torch.tensor([p.temperature for p in params], device=device)
    numbers = torch.tensor(uniform, dtype=torch.float64, device=device)
    probabilities = torch.softmax(logits / temperatures[:, None], dim=-1)
    tokens = torch.empty(len(params), dtype=torch.int64, device=device)
    widths = [_width(p, vocab) for p in params]
    # Rows of one width together: how many candidates are sorted must not depend on the other rows.
    for width, group in groupby(sorted(range(len(params)), key=lambda row: widths[row]), key=lambda row: widths[row]):
        rows = list(group)
        some = probabilities if len(rows) == len(params) else probabilities[rows]
        if width == 0:
            tokens[rows] = _invert(some, numbers[rows])
        else:
            tokens[rows] = _draw_filtered(some, numbers[rows], [params[row] for row in rows], width)
    return tokens


def _width(params: SamplingParams, vocab: int) -> int:
    """How many of the most likely tokens can be candidates; 0: all of them, in order of token."""
    if 0 < params.top_k < vocab:
        return params.top_k
    return min(NARROW, vocab) if params.top_p < 1.0 or params.min_p > 0.0 else 0


def _draw_filtered(probabilities: Tensor, uniform: Tensor, params: Sequence[SamplingParams], width: int) -> Tensor:
    """Top-k, top-p and min-p, in this order, on the `width` most likely tokens; on all where those do not suffice."""
    device, vocab = probabilities.device, probabilities.shape[1]
    if width > WIDEST and device.type == "cpu":
        return _draw_ranked(probabilities, uniform, params)
    values, ids = probabilities.topk(width, dim=-1)
    by_top_k = torch.tensor([0 < p.top_k < vocab for p in params], device=device)
    total = torch.where(by_top_k, values.sum(dim=-1), 1.0)
    mass = torch.tensor([p.top_p for p in params], device=device) * total
    floor = torch.tensor([p.min_p for p in params], device=device) * values[:, 0]
    before = values.cumsum(dim=-1) - values
    kept = (before < mass[:, None]) & (values >= floor[:, None])
    tokens = ids.gather(1, _invert(values * kept, uniform)[:, None]).squeeze(1)
    if width < vocab:
        # Where the least likely candidate is still kept, tokens that were not looked at may have to be, too.
        open_ended = (kept[:, -1] & ~by_top_k).nonzero().squeeze(1).tolist()
        if open_ended:
            some = probabilities if len(open_ended) == len(params) else probabilities[open_ended]
            theirs = [params[row] for row in open_ended]
            tokens[open_ended] = _draw_filtered(some, uniform[open_ended], theirs, vocab)
    return tokens


def _draw_ranked(probabilities: Tensor, uniform: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The same without a sort, row by row: [R, vocab] on the CPU to [R] int64."""
    rows = zip(probabilities.numpy(), uniform.tolist(), params, strict=True)
    return torch.tensor([draw_ranked(row, number, p.top_k, p.top_p, p.min_p) for row, number, p in rows])


def draw_ranked(
    probabilities: NDArray[np.float32], uniform: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> int:
    """Draw from one row's candidates in descending order of probability, ties in ascending order of token.

    Each filter keeps a first part of that order, so that together they keep the shortest of those parts.

    Args:
        probabilities: [vocab] float32.
        uniform: where in the candidates' mass to draw, in [0, 1).
        top_k: as in `SamplingParams`.
        top_p: likewise.
        min_p: likewise.
    """
    ranking = Ranking(probabilities)
    if not ranking.total > 0.0:
        return int(probabilities.argmax())  # a broken model: NaN
    kept, whole = ranking.total, 1.0
    if 0 < top_k < len(probabilities):
        first = len(probabilities) - top_k
        kept = whole = float(np.partition(probabilities, first)[first:].sum(dtype=np.float64))
    if top_p < 1.0:
        kept = min(kept, ranking.mass_through(top_p * whole))
    if min_p > 0.0:
        floor = np.float32(min_p) * probabilities.max()
        kept = min(kept, float(probabilities[probabilities >= floor].sum(dtype=np.float64)))
    # Rounding must not let the draw leave the candidates.
    return ranking.token_at(min(uniform * kept, float(np.nextafter(kept, 0.0))))


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """First position whose cumulated weight exceeds `uniform` of the total: [R, n] and [R] to [R] int64."""
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)
    target = uniform * cumulated[:, -1]
    position = torch.searchsorted(cumulated, target[:, None], right=True).squeeze(1)
    if bool((target < cumulated[:, -1]).all()):
        return position
    # Rounding can put the target at the total itself: the last position of any weight is meant.
    last = (cumulated < cumulated[:, -1:]).sum(dim=-1)
    return torch.minimum(position, last)
