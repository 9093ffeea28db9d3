from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from serve.engine.draw import NARROW, WIDEST, draw, draw_ranked
from serve.engine.ranking import Ranking
from serve.engine.request import SamplingParams

VOCAB = 3000
UNIFORM = (0.0, 0.1, 0.25, 0.4999, 0.5, 0.75, 0.9, 0.999, 1 - 2**-53)

FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 1e-6},
    {"top_k": 1},
    {"top_k": 2000},
    {"top_k": 2000, "top_p": 0.75},
    {"min_p": 0.5},
    {"min_p": 1.0},
    {"top_k": 2500, "top_p": 0.875, "min_p": 0.25},
)


def by_sorting(p: NDArray[np.float32], uniform: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> int:
    """The definition: sort, cut, cumulate."""
    order = np.argsort(-p, kind="stable")
    values = p[order].astype(np.float64)
    whole = 1.0
    if 0 < top_k < len(p):
        values[top_k:] = 0.0
        whole = values.sum()
    before = values.cumsum() - values
    kept = values * (values >= np.float32(min_p) * p.max())
    if top_p < 1.0:
        kept *= before < top_p * whole
    cumulated = kept.cumsum()
    place = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))
    return int(order[min(place, int(np.searchsorted(cumulated, cumulated[-1])))])


def distributions() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    uniform = np.full(4096, 2.0**-12)
    # Sums of multiples of 2**-20 are exact, so both ways of adding must agree to the last bit, and there are many ties.
    steps = np.bincount(rng.integers(0, 1500, 2**20), minlength=1500) * 2.0**-20
    few = np.repeat([4, 2, 1, 0], [64, 256, 256, 100]) / 1024.0
    one = np.eye(1, 2000, 1234)[0]
    tail = np.concatenate([[0.5], np.full(1024, 2.0**-11)])
    return {
        name: rng.permutation(p).astype(np.float32)
        for name, p in (("uniform", uniform), ("steps", steps), ("few", few), ("one", one), ("tail", tail))
    }


@pytest.mark.parametrize("asked", FILTERS)
@pytest.mark.parametrize("name", ["uniform", "steps", "few", "one", "tail"])
def test_a_draw_without_a_sort_is_that_with_one(name: str, asked: dict[str, Any]) -> None:
    p = distributions()[name]
    for uniform in UNIFORM:
        assert draw_ranked(p, uniform, **asked) == by_sorting(p, uniform, **asked)


@pytest.mark.parametrize("asked", FILTERS)
@pytest.mark.parametrize("spread", [0.001, 0.1, 1.0, 8.0])
def test_it_is_so_for_softmaxes_of_any_spread(spread: float, asked: dict[str, Any]) -> None:
    logits = spread * torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    p = torch.softmax(logits, 0).numpy()
    for uniform in np.random.default_rng(2).random(50):
        assert draw_ranked(p, float(uniform), **asked) == by_sorting(p, float(uniform), **asked)


def test_a_ranking_finds_every_place_of_the_order() -> None:
    p = distributions()["steps"]
    order = np.argsort(-p, kind="stable")
    order = order[p[order] > 0]
    ranking, cumulated = Ranking(p), p[order].astype(np.float64).cumsum()
    assert ranking.total == cumulated[-1]
    for place, token in enumerate(order):
        before = cumulated[place - 1] if place else 0.0
        assert ranking.token_at(before) == token
        assert ranking.mass_through(cumulated[place]) == cumulated[place]
        assert ranking.mass_through(before + 2.0**-30) == cumulated[place]
    assert ranking.token_at(2.0) == order[-1]
    assert ranking.mass_through(2.0) == ranking.total


def test_wide_and_narrow_draws_agree() -> None:
    """The same row where the first candidates suffice and where they do not give the same token."""
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(3)) * 3
    p = torch.softmax(logits, 1)[0].numpy()
    for number in np.random.default_rng(4).random(100):
        narrow = draw(logits, [SamplingParams(top_p=0.5)], [float(number)])
        assert int(narrow) == by_sorting(p, float(number), top_p=0.5)


@pytest.mark.parametrize("asked", [{"top_p": 0.9}, {"min_p": 0.1}, {"top_k": WIDEST + 1}])
def test_no_flat_row_is_sorted(monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]) -> None:
    widths: list[int] = []
    topk = torch.Tensor.topk

    def recorded(self: torch.Tensor, width: int, *args: Any, **kwargs: Any) -> Any:
        widths.append(width)
        return topk(self, width, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "topk", recorded)
    logits = 0.1 * torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(5))
    draw(logits, [SamplingParams(**asked)] * 2, [0.3, 0.6])
    assert all(width <= NARROW for width in widths)


def test_a_broken_model_does_not_end_the_step() -> None:
    logits = torch.full((1, VOCAB), torch.nan)
    for asked in FILTERS:
        assert 0 <= int(draw(logits, [SamplingParams(**asked)], [0.5])) < VOCAB
