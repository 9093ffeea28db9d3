"""`overtone router train`."""

import json
from pathlib import Path

import pytest

from merge.bundle import load_router
from serve.cli import main
from serve.router import Router

PROMPTS = {
    "sql": ["SELECT name FROM people", "SELECT age FROM cats", "INSERT INTO dogs VALUES (1)", "DROP TABLE birds"],
    "poetry": ["O rose, thou art sick", "Shall I compare thee", "Tyger Tyger, burning bright", "Because I could not"],
}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["router", "train", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [json.dumps({"task": task, "prompt": text}) for task, texts in PROMPTS.items() for text in texts]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return tmp_path / "prompts.jsonl"


def test_a_router_is_trained_and_written(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(prompts), str(tmp_path / "out"), "--features", "ngram", "--threshold", "0.2") == 0
    assert "a router for poetry, sql; threshold 0.2" in capsys.readouterr().out
    model = load_router(tmp_path / "out")
    assert Router(model).decide("SELECT name FROM cats").expert == "sql"
    assert run(str(prompts), str(tmp_path / "out")) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_trained_router_is_asked_and_measured(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(prompts), str(tmp_path / "out"), "--features", "ngram", "--threshold", "0.2") == 0
    capsys.readouterr()
    for arguments, expected in (
        (["SELECT name FROM cats"], {"expert": "sql"}),
        (["--data", str(prompts)], {"prompts": 8, "accuracy": 1.0}),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["route", str(tmp_path / "out"), *arguments, "--json"])
        assert ended.value.code == 0
        assert json.loads(capsys.readouterr().out).items() >= expected.items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompt"),
        ("[]", "line 1 must be an object"),
        ('{"task": "sql", "prompt": "one"}', "at least 2 different prompts of task 'sql'"),
    ],
)
def test_faults_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "prompts.jsonl").write_text(text)
    assert run(str(tmp_path / "prompts.jsonl"), str(tmp_path / "out")) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threshold", "2"), "--threshold: Input should be less than or equal to 1"),
        (("--features", "words"), "is not one of 'ngram', 'encoder', 'backbone'"),
        (("--features", "backbone"), "--backbone: the feature backbone needs the model's directory"),
        (("--max-foreign-routed", "0.1"), "max_foreign_routed needs foreign"),
    ],
)
def test_settings_are_checked(
    prompts: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run(str(prompts), "out", *arguments) == 2
    assert message in capsys.readouterr().err
