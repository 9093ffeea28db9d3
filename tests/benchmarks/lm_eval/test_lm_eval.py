import json
from pathlib import Path

import pytest
import yaml

from benchmarks.lm_eval import run
from benchmarks.lm_eval.tasks import CHOICES, write_tasks
from benchmarks.peers.environment import PeerError


def test_the_tasks_are_written_for_lm_eval(tmp_path: Path):
    names = write_tasks(tmp_path, 12)
    for name in names:
        task = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
        assert task["task"] == name
        lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
        assert len(lines) == 12
    chosen = [json.loads(line) for line in (tmp_path / f"{names[0]}.jsonl").read_text().splitlines()]
    assert all(len(set(document["choices"])) == CHOICES for document in chosen)
    assert len({document["gold"] for document in chosen}) > 1
    generated = [json.loads(line) for line in (tmp_path / f"{names[1]}.jsonl").read_text().splitlines()]
    assert all(document["answer"] and document["prompt"] for document in generated)


def test_where_it_cannot_be_installed_it_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(environment, say):
        raise PeerError("pip install failed: no network")

    monkeypatch.setattr(run, "prepare", refuse)
    assert run.evaluate(tmp_path, 4) == {"skipped": "pip install failed: no network"}


def test_prompts_begin_as_the_models_texts_did():
    options = dict(option.split("=") for option in run._model("http://127.0.0.1:1", Path("t")).split(","))
    assert options["base_url"] == "http://127.0.0.1:1/v1/completions"
    assert options["add_bos_token"] == "True"


def test_metrics_without_filters_and_errors():
    found = {"alias": "x", "acc,none": 0.51239, "acc_stderr,none": 0.1, "exact_match,strict": 1.0}
    assert run._metrics(found) == {"acc": 0.5124, "exact_match": 1.0}
