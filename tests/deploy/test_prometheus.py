"""A real Prometheus with our configuration scrapes a real server, and answers what the dashboard asks."""

import math
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.conftest import DEPLOY, use
from tests.deploy.promql import dashboard_expressions, rules

PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is missing: apt-get install prometheus")


@pytest.fixture(scope="module")
def prometheus(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(DEPLOY / "prometheus/rules.yaml", folder)
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "300ms", "scrape_timeout": "300ms", "evaluation_interval": "300ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server.removeprefix("http://")]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        *(PROMETHEUS, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"),
        *(f"--web.listen-address={address}", "--log.level=warn"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=20) as client:
            wait_until_ready(client, process, folder / "log")
            yield client
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(client: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if client.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def answer(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """Series with a value that is a number."""
    reply = client.get("/api/v1/query", params={"query": expression}).json()
    assert reply["status"] == "success", (expression, reply)
    return [series for series in reply["data"]["result"] if not math.isnan(float(series["value"][1]))]


def test_the_dashboard_is_answered(server: str, prometheus: httpx.Client):
    open_questions = {(e.owner, e.filled) for e in dashboard_expressions()}
    open_questions |= {(rule["record"], rule["record"]) for rule in rules() if "record" in rule}
    deadline = time.monotonic() + 120
    while open_questions:
        assert time.monotonic() < deadline, f"no answer to {sorted(open_questions)}"
        use(server)  # rates need two scrapes that differ
        open_questions = {question for question in open_questions if not answer(prometheus, question[1])}


def test_the_labels_are_the_experts(server: str, prometheus: httpx.Client):
    use(server)
    deadline = time.monotonic() + 60
    while {"sql", "poetry", "backbone"} - (found := set(experts(prometheus))):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert {series["value"][1] for series in answer(prometheus, 'up{job="overtone"}')} == {"1"}


def experts(prometheus: httpx.Client) -> list[str]:
    return [
        series["metric"]["expert"] for series in answer(prometheus, "sum by (expert) (overtone_expert_requests_total)")
    ]


def test_no_rule_fails(prometheus: httpx.Client):
    deadline = time.monotonic() + 60
    while True:
        groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        assert {rule["lastError"] for rule in found if rule["health"] == "err"} == set()
        if len(found) == len(rules()) and all(rule["health"] == "ok" for rule in found):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
