"""The benchmark against a small server: every body gets the answer that it should get."""

import pytest

from benchmarks.event_loop import Outcome, cases, measure
from serve.config import ApiSettings
from tests.serve.api.fakes import FakeEngine, fake_service, live

LIMIT = 2**21


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    engine = FakeEngine()
    engine.model = lambda request: [97] * 20
    engine.delay = 0.01
    with live(fake_service(engine), ApiSettings(max_body_bytes=LIMIT)) as url:
        return {outcome.name: outcome for outcome in measure(url, cases(LIMIT), repeats=1, pause=0.05)}


def test_each_body_is_answered_as_it_should_be(outcomes: dict[str, Outcome]):
    expected = {case.name: case.statuses for case in cases(LIMIT)}
    assert {name: outcome.status for name, outcome in outcomes.items() if outcome.status not in expected[name]} == {}
    assert len(outcomes) == len(expected) > 25


def test_gaps_are_measured(outcomes: dict[str, Outcome]):
    assert all(outcome.gap_seconds > 0 for outcome in outcomes.values())
