import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.api.generate.service import Service
from serve.api.loading import load_runtime
from serve.child import Child, serving
from serve.cli import main
from serve.config import ServerSettings
from serve.engine import EngineConfig
from serve.metrics import Metrics
from tests.serve.api.fakes import live
from tests.serve.conftest import TinyBundle

LINES = (
    {"task": "sql", "prompt": "SELECT name FROM table", "answer": "x"},
    {"task": "poetry", "prompt": "O sweet rose, softer", "answer": "."},
)


SMALL = ("--max-tokens", "3", "--metric", "poetry=contains", "--no-progress")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["eval", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    return file


def test_a_bundle_without_prompts_is_refused_with_what_would_help(
    tiny: TinyBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(tiny.bundle.path)) == 1
    told = capsys.readouterr().err
    assert "is not the bundle of a demo" in told
    assert "--data FILE" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give a bundle, or a running server with --url"),
        (("--url", "http://127.0.0.1:9"), "give a file with --data"),
    ],
)
def test_something_to_measure_is_needed(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert told in capsys.readouterr().err


def test_a_task_without_an_expert_is_told_before_anything_runs(
    tiny: TinyBundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(tiny.bundle.path), "--data", str(data)) == 1
    told = capsys.readouterr().err
    assert "there is no such expert; the experts are a, b, c, d" in told
    assert told.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--url", "http://127.0.0.1:9", "--data", str(data)) == 1
    assert re.fullmatch(r"error: http://127\.0\.0\.1:9 cannot be reached: .*\n", capsys.readouterr().err)


@pytest.fixture(scope="module")
def child(speaker: TinyBundle) -> Iterator[Child]:
    """The bundle served in this process, which starts faster than a separate one."""
    settings = ServerSettings(speaker.bundle.path, engine=EngineConfig(kv_cache_bytes=2**24))
    runtime = load_runtime(settings, Metrics())
    runtime.engine.start()
    try:
        with live(Service(Metrics(), runtime)) as url:
            yield Child(url, "any")
    finally:
        asyncio.run(runtime.engine.shutdown(0))


def test_a_bundle_is_served_and_measured(
    speaker: TinyBundle,
    child: Child,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve.child.serving", lambda bundle: contextlib.nullcontext(child))
    page = tmp_path / "page.html"
    assert run(str(speaker.bundle.path), *SMALL, "--data", str(data), "--json", "--html", str(page)) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert not err
    assert found["name"] == "speaker"
    assert found["router_accuracy"] == 1
    assert found["tasks"]["poetry"]["metric"] == "contains"
    assert found["tasks"]["sql"]["reply_tokens"].keys() == {"backbone", "expert", "routed"}
    assert found["average"]["fine_tune"] is None
    assert 0 < found["expert_bytes_fraction"] < 1
    assert any("recipe cannot be read" in note for note in found["notes"])
    assert page.read_text().startswith("<!doctype html>")


def test_a_running_server_is_measured_without_its_bundle(
    child: Child, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--url", child.url, "--api-key", child.api_key, *SMALL, "--data", str(data)) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["task", "prompts", "metric", "backbone", "expert", "routed", "router"]
    assert [line.split()[0] for line in table[1:4]] == ["poetry", "sql", "average"]


def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho warning: dust >&2; echo error: out of memory >&2; exit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(ValueError, match="^out of memory$"), serving(tmp_path):
        pass
