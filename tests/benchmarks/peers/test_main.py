import math

import pytest

from benchmarks.peers import PeerError
from benchmarks.peers.__main__ import _figures, measure, table, texts
from serve.bench.client import Answer
from serve.bench.summary import summarise

GOOD = Answer("e0", sent=0.0, pieces=(0.1, 0.3), ended=0.3, tokens=2)
BAD = Answer("e0", sent=0.0, pieces=(), ended=1.0, tokens=0, error="503: busy")


def test_figures_are_medians_over_rounds():
    slow = Answer("e0", sent=0.0, pieces=(0.1, 0.5), ended=0.5, tokens=2)
    figures = _figures([summarise([GOOD]), summarise([slow]), summarise([slow, BAD])])
    assert (figures["tpot_ms"], figures["tpot_ms_min"], figures["tpot_ms_max"]) == (400, 200, 400)
    assert (figures["ttft_ms"], figures["failed"], figures["errors"]) == (100, 1, ["503: busy"])


def test_a_server_that_answered_nothing_has_no_figures_but_its_errors():
    figures = _figures([summarise([BAD])])
    assert math.isnan(figures["tpot_ms"])
    assert figures["errors"] == ["503: busy"]
    assert "nan" in table({"servers": {"x": {"8 users": figures}}})


def test_the_picture_leaves_out_what_failed(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need the extra bench")
    from benchmarks.peers.plot import draw

    good, bad = _figures([summarise([GOOD])]), _figures([summarise([BAD])])
    draw({"servers": {"ours": {"1 user": good, "8 users": good}, "other": {"1 user": bad}}}, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_prompts_are_words_of_the_vocabulary():
    found = texts(3, 5, 10, seed=1)
    assert len(set(found)) == 3
    assert all(len(text.split()) == 5 and all(0 <= int(word[1:]) < 10 for word in text.split()) for text in found)


def test_an_unknown_server_is_refused():
    with pytest.raises(PeerError, match="no server 'other'; there are: overtone, vllm, transformers"):
        measure(["other"], 1, 1, 1, quick=True)
