import numpy as np

from kernels.sampling.ranking import Ranking


def test_a_ranking_finds_every_place_of_the_order() -> None:
    weights = np.random.default_rng(0).integers(0, [5, 400, 1 << 30] * 500).astype(np.int32)
    order = np.argsort(-weights, kind="stable")
    order = order[weights[order] > 0]
    ranking, cumulated = Ranking(weights), weights[order].astype(np.int64).cumsum()
    assert ranking.total == cumulated[-1]
    for place, token in enumerate(order):
        before = int(cumulated[place - 1]) if place else 0
        assert ranking.token_at(before) == ranking.token_at(int(cumulated[place]) - 1) == token
        assert ranking.mass_through(before + 1) == ranking.mass_through(int(cumulated[place])) == cumulated[place]
