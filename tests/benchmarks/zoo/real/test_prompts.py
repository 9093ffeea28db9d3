import json

import pytest

from benchmarks.zoo.real import prompts
from serve.demo.zoo.real.tasks import TASKS, find_task


def test_the_command_prints_labelled_prompts(capsys: pytest.CaptureFixture[str]):
    prompts.main(["--split", "test", "--phrasings", "held_out", "--per-task", "3"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["task"] for row in rows] == [task.name for task in TASKS for _ in range(3)]
    for row in rows:
        asked = {
            example.prompt: example.answer for example in find_task(row["task"]).examples("test", 3, 0, "held_out")
        }
        assert asked[row["prompt"]] == row["answer"]


def test_an_unknown_split_is_one_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        prompts.main(["--split", "dev"])
    assert "invalid choice: 'dev'" in capsys.readouterr().err
