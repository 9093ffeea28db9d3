"""schemathesis against the OpenAPI document of a running server: requests from its schemas, right and wrong ones."""

import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import Environment, PeerError, prepare
from benchmarks.server import server_process

SCHEMATHESIS = Environment("schemathesis", ("schemathesis==4.32.5",))
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "unsupported_method"),
)
"""Checks of every reply. Not `positive_data_acceptance`: a name that fits the schema may still be unknown."""

# A wrong body may also be too long a body, which its own list of refusals lacks.
_CONFIG = """
[checks]
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "409", "413", "429", "5xx"]
"""
_KEY = "schemathesis"
_SECONDS = 1800


def attack_document(bundle: Path, examples: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Serve a bundle and have schemathesis make up to `examples` requests for each operation and phase.

    Returns:
        `{"schemathesis": version, "operations", "failures": [...]}`, or `{"skipped": why}` if it cannot be
        installed.
    """
    try:
        python = prepare(SCHEMATHESIS, say)
    except PeerError as error:
        return {"skipped": str(error)}
    options = ["--log-level", "error"]
    with tempfile.TemporaryDirectory() as folder, server_process(bundle, options, _KEY) as server:
        report = Path(folder) / "junit.xml"
        (Path(folder) / "schemathesis.toml").write_text(_CONFIG)
        command: list[str | Path] = [
            *(python.parent / "schemathesis", "run", f"{server.url}/openapi.json", "--checks", ",".join(CHECKS)),
            *("--header", f"Authorization: Bearer {_KEY}", "--max-examples", str(examples), "--seed", str(seed)),
            *("--report-junit-path", report, "--no-color", "--request-timeout", "60", "--workers", "1"),
            *("--continue-on-failure", "--output-sanitize", "false"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=folder)
        if done.returncode not in (0, 1) or not report.is_file():  # 1: it found something
            lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(f"schemathesis failed: {lines[-1]}")
        return {"schemathesis": SCHEMATHESIS.packages[0].partition("==")[2], **outcome(report.read_text())}


def outcome(junit: str) -> dict[str, Any]:
    """Operations and failures of a JUnit report, in which sequences of several operations are a separate case."""
    cases = list(ET.fromstring(junit).iter("testcase"))
    failures = []
    for case in cases:
        for bad in (*case.iter("failure"), *case.iter("error")):
            why = " ".join((bad.get("message") or "", bad.text or "")).split()
            failures.append(f"{case.get('name')}: {' '.join(why)[:600]}")
    operations = [case for case in cases if " /" in (case.get("name") or "")]
    return {"operations": len(operations), "failures": failures}
