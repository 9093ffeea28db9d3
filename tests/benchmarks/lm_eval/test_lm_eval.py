import contextlib
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from benchmarks.lm_eval import run
from benchmarks.lm_eval.tasks import CHOICES, CODE_STOPS, code_documents, write_tasks
from benchmarks.peers.environment import PeerError


def test_the_tasks_are_written_for_lm_eval(tmp_path: Path):
    written = write_tasks(tmp_path, 12)
    names, stops = written.completions, {}
    for name in (*names, *written.chats):
        task = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
        assert task["task"] == name
        stops[name] = task.get("generation_kwargs", {}).get("until")
        lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
        assert len(lines) == 12
    assert stops == {names[0]: None, names[1]: ["\n"], names[2]: list(CODE_STOPS), written.chats[0]: ["\n"]}
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


def test_each_client_is_given_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Server:
        url = "http://127.0.0.1:1"

    asked = {}

    def lm_eval(command, **_):
        options = dict(zip(command[3::2], command[4::2], strict=False))
        asked[options["--model"]] = (options["--model_args"].partition(",add")[0], options["--tasks"].split(","))
        out = Path(options["--output_path"]) / "model"
        out.mkdir(parents=True)
        results = {name: {"exact_match,none": 0.5} for name in options["--tasks"].split(",")}
        (out / "results_1.json").write_text(json.dumps({"lm_eval_version": "1.2.3", "results": results}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(run, "prepare", lambda environment, say: Path("python"))
    monkeypatch.setattr(run, "server_process", lambda bundle, options: contextlib.nullcontext(Server()))
    monkeypatch.setattr(run.subprocess, "run", lm_eval)
    report = run.evaluate(tmp_path, 4)
    assert report["lm_eval"] == "1.2.3"
    assert set(asked) == {"local-completions", "local-chat-completions"}
    options, tasks = asked["local-chat-completions"]
    assert "base_url=http://127.0.0.1:1/v1/chat/completions" in options
    names = [*asked["local-completions"][1], *tasks]
    assert report["results"] == {name: {"exact_match": 0.5} for name in names}
    assert len(set(names)) == 4


def test_metrics_without_filters_and_errors():
    found = {"alias": "x", "acc,none": 0.51239, "acc_stderr,none": 0.1, "exact_match,strict": 1.0}
    assert run._metrics(found) == {"acc": 0.5124, "exact_match": 1.0}


def test_the_code_that_is_asked_for_does_what_it_says():
    namespace: dict = {}
    for document in code_documents(99):
        exec(f"{document['prompt']} {document['answer']}", namespace)
    assert [namespace["add"](2, 3), namespace["is_even"](3), namespace["last"]([1, 2])] == [5, False, 2]
    assert namespace["reverse"]("ab") == "ba"
    assert len(code_documents(4)) == 4
