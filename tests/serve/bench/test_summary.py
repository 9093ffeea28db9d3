import pytest

from serve.bench.client import Answer
from serve.bench.summary import Slo, Spread, summarise

ANSWERS = [
    Answer("a", sent=0.0, pieces=(0.1, 0.2, 0.4), ended=0.4, tokens=3),
    Answer(None, sent=0.5, pieces=(0.6, 0.7), ended=1.5, tokens=2),
    Answer("a", sent=1.0, pieces=(), ended=2.0, tokens=0, error="503: busy"),
]


def test_figures():
    found = summarise(ANSWERS)
    assert (found.requests, found.failed, found.errors) == (3, 1, {"503: busy": 1})
    assert found.seconds == 2.0
    assert found.experts == {"": 1, "a": 2}
    assert (found.tokens, found.tokens_per_s, found.requests_per_s) == (5, 2.5, 1.0)
    assert found.ttft_ms is not None
    assert found.ttft_ms.mean == pytest.approx(100)
    assert found.tpot_ms is not None
    assert found.tpot_ms.p50 == pytest.approx((150 + 100) / 2)
    assert found.itl_ms is not None
    assert found.itl_ms.mean == pytest.approx((100 + 200 + 100) / 3, abs=1e-3)
    assert found.e2e_ms is not None
    assert found.e2e_ms.p50 == pytest.approx(700)


def test_goodput_counts_what_met_both_bounds():
    assert summarise(ANSWERS).goodput_per_s == 1.0
    assert summarise(ANSWERS, Slo(ttft_ms=150, tpot_ms=120)).goodput_per_s == 0.5
    assert summarise(ANSWERS, Slo(ttft_ms=50)).goodput_per_s == 0.0


def test_the_series_has_each_second():
    series = summarise(ANSWERS).series
    assert [row["pieces"] for row in series] == [5, 0, 0]
    assert [row["in_flight"] for row in series] == [1, 1, 0]
    assert [row["itl_p50_ms"] for row in series] == [100.0, None, None]


def test_nothing_answered():
    found = summarise(ANSWERS[2:])
    assert (found.failed, found.tokens, found.ttft_ms) == (1, 0, None)
    assert found.goodput_per_s == 0


def test_a_spread_has_percentiles():
    assert Spread.of([float(n) for n in range(101)]) == Spread(50, 50, 90, 99)
