import dataclasses

import numpy as np
import pytest

from merge.bundle import BundleError, open_bundle, save_router
from serve.router import Router
from tests.merge.bundle.test_router_model import make_router
from tests.merge.bundle.test_writer import write


def test_the_most_probable_expert_is_chosen() -> None:
    model = make_router()
    router = Router(model, threshold=0.0)
    decision = router.decide("sort the letters")
    chances = model.probabilities("sort the letters")
    assert decision.expert == model.names[int(chances.argmax())]
    assert decision.confidence == chances.max()
    assert list(decision.scores) == list(model.names)


def test_under_the_threshold_nobody_is() -> None:
    decision = Router(make_router(), threshold=1.0).decide("sort the letters")
    assert decision.expert is None
    assert decision.confidence == pytest.approx(1.0 - sum(decision.scores.values()))


def test_the_threshold_is_the_bundles_unless_given() -> None:
    assert Router(make_router()).threshold == make_router().threshold
    with pytest.raises(ValueError, match="from 0 to 1, not 1.5"):
        Router(make_router(), threshold=1.5)


def test_loading_from_a_bundle(tmp_path) -> None:
    write(tmp_path / "out")
    bundle = open_bundle(tmp_path / "out")
    with pytest.raises(BundleError, match="has no router"):
        Router.from_bundle(bundle)
    save_router(bundle.path / "router", make_router(experts=1))
    with pytest.raises(BundleError, match="not there: task0"):
        Router.from_bundle(bundle)
    save_router(bundle.path / "router", dataclasses.replace(make_router(experts=1), names=("roman",)))
    assert Router.from_bundle(bundle).names == ("roman",)
    assert np.isfinite(Router.from_bundle(bundle).decide("anything").confidence)
