import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.zoo import evaluate, train
from benchmarks.zoo.measure import measure
from benchmarks.zoo.processes import in_parallel
from benchmarks.zoo.training import Schedule
from serve.demo.tiny import models_dir


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tasks", "roman,romam"], "romam named, but the tasks are dates, roman"),
        (["--tasks", ","], "nothing named"),
        (["--count", "0"], "'0' must be a whole number of at least 1"),
        (["--count", "2"], "--count must be at least 3"),
        (["--seed", "x"], "--seed: invalid int value: 'x'"),
        (["--out", "/dev/null/zoo"], "/dev/null/zoo"),
        (["--steps", "3"], "unrecognized arguments: --steps 3"),
    ],
)
def test_training_answers_bad_arguments_in_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--models", "/nowhere"], "/nowhere holds no base/"), (["--count", "2"], "--count must be at least 3")],
)
def test_evaluation_answers_bad_arguments_in_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert named in error


def test_training_writes_a_whole_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = Schedule(steps=2, batch_size=4, learning_rate=1e-3, warm_up=1)
    monkeypatch.setattr(train, "PRETRAINING", short)
    monkeypatch.setattr(train, "FINE_TUNING", short)
    train.main(["--out", str(tmp_path), "--tasks", "roman,sort", "--count", "3", "--jobs", "1", "--json"])
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed == json.loads((tmp_path / "metrics.json").read_text())
    assert list(printed["tasks"]) == ["roman", "sort"]
    assert printed["seeds"] == {"training": 0, "prompts": 1}
    assert set(printed["seconds"]) == {"base", "roman", "sort", "total"}
    assert 0 < printed["tasks"]["sort"]["relative_norm"] < 1
    assert "base: 2 of 2, loss " in captured.err
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 512
    for name in ("base", "fine_tunes/roman", "fine_tunes/sort"):
        assert (tmp_path / "models" / name / "model.safetensors").is_file()


def test_evaluation_prints_a_table_of_the_models_present(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fine_tunes").mkdir()
    (tmp_path / "base").symlink_to(models_dir() / "base")
    (tmp_path / "fine_tunes" / "roman").symlink_to(models_dir() / "fine_tunes" / "roman")
    evaluate.main(["--models", str(tmp_path), "--count", "6"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", "roman", "mean"]
    roman = lines[1].split()
    # With one fine-tune the plain average is that fine-tune, and there is no other task to forget.
    assert roman[1] == roman[4]
    assert roman[5] == "-"


def test_measuring_needs_prompts_and_tasks() -> None:
    with pytest.raises(ValueError, match="at least 3 prompts"):
        measure(models_dir(), [], 2, 0)


@pytest.mark.usefixtures("fork_server")
def test_a_fine_tune_is_the_same_in_a_process_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    short = Schedule(steps=2, batch_size=4, learning_rate=1e-3, warm_up=1)

    def run(names: Sequence[str], jobs: int) -> list[bytes]:
        paths = [tmp_path / str(jobs) / name for name in names]
        work = [(models_dir() / "base", path.name, 0, short, path) for path in paths]
        assert len(list(in_parallel(train.fine_tune, work, jobs))) == len(names)
        return [(path / "model.safetensors").read_bytes() for path in paths]

    (forked,) = run(["sort"], 2)
    # The library's own progress bars must not come between ours.
    assert capfd.readouterr().err == ""
    roman, sort = run(["roman", "sort"], 1)
    assert forked == sort != roman
