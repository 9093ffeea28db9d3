import json
from pathlib import Path
from typing import Any

import pytest

from merge.evaluate import check_tasks, read_data
from merge.experts.examples import Message

ONE: dict[str, Any] = {"task": "one", "prompt": "ab", "answer": "A"}


def write(tmp_path: Path, *lines: object) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def test_prompts_messages_and_strangers_are_read(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    file = write(
        tmp_path,
        ONE,
        "",
        {"task": "two", "messages": [*talk, {"role": "assistant", "content": "hello"}], "metric": "contains", "id": 7},
        {"task": None, "prompt": "none of yours"},
        {"task": "three", "prompt": "sum", "answer": 12, "metric": "number"},
    )
    one, two, stranger, three = read_data(file)
    assert (one.task, one.example.text, one.answer, one.metric) == ("one", "ab", "A", "exact")
    assert two.example.messages == (Message("system", "Be brief."), Message("user", "hi"))
    assert (two.answer, two.metric) == ("hello", "contains")
    assert (stranger.task, stranger.example.text) == (None, "none of yours")
    assert three.answer == "12"


def test_the_command_line_s_metrics_override_the_file_s(tmp_path: Path) -> None:
    file = write(tmp_path, {**ONE, "metric": "contains"}, {**ONE, "task": "two"}, {**ONE, "task": "three"})
    found = read_data(file, ["normalized", "two=regex"])
    assert [line.metric for line in found] == ["normalized", "regex", "normalized"]


def test_the_limit_is_of_each_task(tmp_path: Path) -> None:
    file = write(tmp_path, *(({**ONE, "prompt": f"{i}"}) for i in range(3)), {**ONE, "task": "two"})
    assert [(line.task, line.example.text) for line in read_data(file, limit=2)] == [
        ("one", "0"),
        ("one", "1"),
        ("two", "ab"),
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1 is not valid JSON"),
        ("[]", "line 1 must be an object"),
        ({"prompt": "x", "answer": "y"}, "line 1 must be an object"),
        ({**ONE, "task": 3}, "task must be the name of an expert, or null"),
        ({"task": "one", "answer": "y"}, '"prompt"'),
        ({"task": "one", "prompt": "x"}, "line 1 has no answer"),
        ({"task": "one", "prompt": "x", "answr": "y"}, "did you mean 'answer'"),
        ({**ONE, "metric": "bleu"}, "unknown metric 'bleu'; the metrics are exact, "),
        ({**ONE, "metric": "regex", "answer": "("}, "line 1: metric regex: '(' is not a valid regular expression"),
        ({**ONE, "metric": "json"}, "line 1: metric json: the answer 'A' is not valid JSON"),
        ({**ONE, "metric": "number"}, "has no number"),
        ({**ONE, "metric": "choice", "answer": "12"}, "has no letter"),
        ("", "holds no prompt"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, line: object, told: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        read_data(write(tmp_path, line))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("one=bleu", "--metric: unknown metric 'bleu'"),
        ("=exact", "must be a metric, or TASK=METRIC"),
        ("four=exact", "--metric names the task 'four', of which"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(tmp_path: Path, metric: str, told: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        read_data(write(tmp_path, ONE), [metric])
    assert told in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl cannot be read: No such file or directory$"):
        read_data(tmp_path / "none.jsonl")


def test_tasks_and_experts_are_compared(tmp_path: Path) -> None:
    lines = read_data(write(tmp_path, ONE))
    assert check_tasks(lines, ["one"]) == []
    assert check_tasks(lines, ["one", "two", "more"]) == [
        "the data has no line for these experts, which are not measured: more, two"
    ]
    with pytest.raises(ValueError, match="no such expert; did you mean 'once'"):
        check_tasks(lines, ["once", "other"])
    with pytest.raises(ValueError, match="the experts are zebra"):
        check_tasks(lines, ["zebra"])
    with pytest.raises(ValueError, match="no line of an expert"):
        check_tasks(read_data(write(tmp_path, {"task": None, "prompt": "x"})), ["one"])
