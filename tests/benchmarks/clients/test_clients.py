import json
from pathlib import Path

import pytest

from benchmarks.clients import schemathesis, vllm_bench
from benchmarks.clients.__main__ import clean
from benchmarks.peers.environment import PeerError

JUNIT = """<testsuites><testsuite>
<testcase name="POST /tokenize"/>
<testcase name="POST /v1/route">
<failure message="Server error&#10;  500"/><failure message="ST1">no message</failure>
</testcase>
<testcase name="GET /version"><error message="no reply"/></testcase>
<testcase name="Stateful tests"/>
</testsuite></testsuites>"""


def test_failures_are_read_from_the_report():
    assert schemathesis.outcome(JUNIT) == {
        "operations": 3,
        "failures": ["POST /v1/route: Server error 500", "POST /v1/route: ST1 no message", "GET /version: no reply"],
    }


def test_the_figures_of_vllms_client():
    found = dict.fromkeys(vllm_bench._FIGURES, 1.2345) | {"completed": 4, "date": "today"}
    assert vllm_bench.figures(json.dumps(found)) == dict.fromkeys(vllm_bench._FIGURES, 1.23) | {"completed": 4}


@pytest.mark.parametrize(
    ("report", "good"),
    [
        ({}, True),
        ({"vllm_bench_serve": {"skipped": "no network"}, "schemathesis": {"skipped": "no network"}}, True),
        ({"vllm_bench_serve": {"failed": 0}, "schemathesis": {"failures": []}}, True),
        ({"vllm_bench_serve": {"failed": 1}}, False),
        ({"schemathesis": {"failures": ["POST /tokenize: 500"]}}, False),
    ],
)
def test_what_is_clean(report, good: bool):
    assert clean(report) == good


def test_where_they_cannot_be_installed_they_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(environment, say):
        raise PeerError("pip install failed: no network")

    for module in (schemathesis, vllm_bench):
        monkeypatch.setattr(module, "prepare", refuse)
    why = {"skipped": "pip install failed: no network"}
    assert vllm_bench.bench_serve(tmp_path, 4, print) == why
    assert schemathesis.attack_document(tmp_path, 4, 0, print) == why
