"""Heads that come to a router and leave it."""

import dataclasses

import numpy as np
import pytest

from serve.router import Router
from tests.merge.bundle.test_router_model import dense, make_router

TEXT = "sort the letters"


def test_a_router_without_one_head_scores_the_others_by_the_same_logits() -> None:
    router = Router(make_router(experts=3), threshold=0.0)
    gone = router.names[1]
    rest = router.without(gone)
    assert rest.names == (router.names[0], router.names[2])
    before, after = router.decide(TEXT).scores, rest.decide(TEXT).scores
    first, last = rest.names
    assert after[first] / after[last] == pytest.approx(before[first] / before[last])
    assert router.without("nobody") is router
    assert rest.threshold == 0.0


def test_a_router_without_heads_leaves_everything_to_the_backbone() -> None:
    router = Router(make_router(experts=1), threshold=0.0)
    decision = router.without(router.names[0]).decide(TEXT)
    assert (decision.expert, decision.confidence, decision.scores) == (None, 1.0, {})


def test_a_head_keeps_its_logit_in_another_router() -> None:
    source = make_router(experts=2)
    source = dataclasses.replace(source, names=("new", "other"), offset=source.offset + 0.5, temperature=3.0)
    mine = Router(dataclasses.replace(make_router(experts=1), names=("old",)), threshold=0.0)
    joined = mine.with_head_of(source, "new")
    assert joined.names == ("old", "new")

    def logit(model, name: str) -> float:
        row = model.names.index(name)
        score = np.ascontiguousarray(model.weight[row]) @ dense(model.featurizer, TEXT) + model.bias[row]
        return float((score - model.offset) / model.temperature)

    assert logit(joined.model, "new") == pytest.approx(logit(source, "new"), rel=1e-4)
    assert logit(joined.model, "old") == logit(mine.model, "old")
    assert joined.with_head_of(source, "new").names == ("old", "new")


def test_heads_that_do_not_fit() -> None:
    mine, source = Router(make_router(experts=1)), make_router(experts=1)
    with pytest.raises(ValueError, match="no head for 'new'"):
        mine.with_head_of(source, "new")
    featurizer = dataclasses.replace(source.featurizer, bits=source.featurizer.bits + 1)
    wider = np.concatenate([source.weight, source.weight], axis=1)
    with pytest.raises(ValueError, match="another featurizer"):
        mine.with_head_of(dataclasses.replace(source, featurizer=featurizer, weight=wider), source.names[0])
