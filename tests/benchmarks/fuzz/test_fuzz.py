import asyncio
import json
from itertools import islice
from pathlib import Path

import httpx
import pytest

from benchmarks.fuzz import Bodies, Report, Shot, attack
from benchmarks.fuzz.attack import _fault
from serve.api.generate.service import Service
from serve.api.loading import load_runtime
from serve.config import ApiSettings, ServerSettings
from serve.engine import EngineConfig
from serve.metrics import Metrics
from tests.serve.api.bundles import write_speaking_bundle
from tests.serve.api.fakes import live


def test_a_thousand_requests_by_chance_harm_nothing(tmp_path: Path):
    bundle = write_speaking_bundle(tmp_path / "bundle").bundle.path
    metrics = Metrics()
    runtime = load_runtime(ServerSettings(bundle, engine=EngineConfig(kv_cache_bytes=2**22)), metrics)
    runtime.engine.start()
    settings = ApiSettings(admin_api_keys=("k",), expert_dirs=(bundle / "experts",))
    try:
        with live(Service(metrics, runtime), settings) as url:
            report = asyncio.run(attack(url, 1000, seed=1, key="k"))
            assert report.good, report.as_text()
            runtime.engine.health()
    finally:
        asyncio.run(runtime.engine.shutdown(0))
    assert report.requests == 1000
    assert report.left > 5
    assert report.statuses[200] > 200  # it must not only meet refusals
    assert report.statuses[400] > 200
    assert sum(report.statuses.values()) + report.left >= 1000


def test_a_seed_repeats_its_requests():
    def first(seed: int) -> list[Shot]:
        bodies = Bodies(seed)
        return list(islice(iter(bodies.shot, None), 50))

    assert first(3) == first(3)
    assert first(3) != first(4)


ERROR = {"message": "m", "type": "t", "param": None, "code": None}


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (httpx.Response(200, text="anything"), None),
        (httpx.Response(400, json={"error": ERROR}), None),
        (httpx.Response(500, json={"error": ERROR}), "status 500"),
        (httpx.Response(503, json={"error": ERROR}), "status 503"),
        (httpx.Response(404, text="Not Found"), "without an error"),
        (httpx.Response(400, json=[]), "without an error"),
        (httpx.Response(422, json={"error": {"message": "m"}}), "not OpenAI's"),
        (httpx.Response(400, json={"error": {**ERROR, "message": "a\nb"}}), "not OpenAI's"),
    ],
)
def test_what_a_fault_is(reply: httpx.Response, fault: str | None):
    found = _fault(reply)
    assert (found is None) if fault is None else fault in found


def test_reports():
    report = Report(requests=2)
    assert report.good
    for number in range(12):
        report.fault(Shot("POST", "/x", b"{}", leaves=False), f"bad {number}")
    assert not report.good
    assert (report.fault_count, len(report.faults)) == (12, 10)
    assert "12 faults" in report.as_text()
    assert json.loads(json.dumps(report.as_json()))["fault_count"] == 12
    assert not Report(held_blocks=1).good
