import json
from pathlib import Path

import pytest

from serve.cli import main
from tests.serve.conftest import TinyBundle


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_table(tiny: TinyBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tiny.bundle.path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny: 4 experts, ")
    assert [line.split()[0] for line in lines[4:8]] == ["a", "b", "c", "d"]


def test_a_report_beside_json(tiny: TinyBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tiny.bundle.path), "--json", "--html", str(tmp_path / "report.html"), "--no-progress") == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [item["name"] for item in document["experts"]] == ["a", "b", "c", "d"]
    assert document["pictures"]["confusion"] is None
    assert document["pictures"]["remarks"]
    assert not err
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path / "none")) == 1
    assert capsys.readouterr().err.startswith("error: no bundle at")
