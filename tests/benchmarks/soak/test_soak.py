from pathlib import Path

import httpx
import pytest

from benchmarks.soak import Plan, soak
from benchmarks.soak.load import KINDS, WEIGHTS
from benchmarks.soak.tally import Tally, slope_mb_per_minute
from tests.serve.api.bundles import write_speaking_bundle

ERROR = {"error": {"message": "no", "type": "server_overloaded", "param": None, "code": "queue_full"}}


def reply(status: int, document: object = None) -> httpx.Response:
    return httpx.Response(status, json=ERROR if document is None else document)


def test_seconds_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bundle = write_speaking_bundle(tmp_path / "bundle").bundle.path
    report = soak(Plan(bundle, seconds=6))
    document = report.as_json()
    assert report.clean, document
    assert set(document["requests_by_kind"]) == set(KINDS)
    assert document["server_errors"] == document["leaked_blocks"] == document["lost_requests"] == 0
    assert document["answered"] > 0
    assert len(report.rss) > 1


def test_every_kind_has_a_weight():
    assert set(WEIGHTS) == set(KINDS)


def test_each_request_ends_once():
    tally = Tally()
    tally.sent["plain"] += 5
    tally.reply("plain", reply(200, {}), frozenset({200, 429}))
    tally.reply("plain", reply(429), frozenset({200, 429}))
    tally.reply("plain", reply(500), frozenset({200, 429}))
    tally.reply("plain", reply(404), frozenset({200, 429}))
    tally.failure(httpx.ReadTimeout("late"))
    assert tally.as_json() == {
        "requests": 5,
        "requests_by_kind": {"plain": 5},
        "answered": 1,
        "cancelled": 0,
        "errors": {"queue_full": 2},
        "unexpected": {"plain: status 404, queue_full": 1},
        "server_errors": 1,
        "lost_requests": 1,
        "lost_by_kind": {"ReadTimeout": 1},
    }


def test_a_bad_body_that_is_accepted_is_noticed():
    tally = Tally()
    tally.sent["bad body"] += 1
    tally.reply("bad body", reply(200, {}), frozenset({400}))
    assert tally.wrong == {"bad body: status 200, 200 without OpenAI's body": 1}


def test_the_slope():
    grows = [(float(second), 1e9 + 2e6 * max(second - 10, 0)) for second in range(61)]
    assert slope_mb_per_minute(grows) == pytest.approx(120.0)
    assert slope_mb_per_minute(grows[:2]) == 0.0
    assert slope_mb_per_minute([(second, 5e8) for second in range(60)]) == pytest.approx(0.0, abs=1e-9)
