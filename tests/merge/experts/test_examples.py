import json
from pathlib import Path

import pytest

from merge.experts import CalibrationError, Example, read_examples, read_prompts
from merge.experts.examples import Message


def write(path: Path, *items: object) -> Path:
    path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in items) + "\n\n")
    return path


def test_prompts_keep_their_order_without_repeats(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl",
        {"task": "b", "prompt": "2", "answer": "x"}, {"task": "a", "prompt": "1"}, {"task": "b", "prompt": "3"},
        {"task": "b", "prompt": "2"},
    )  # fmt: skip
    assert read_prompts(file, ["a", "b"]) == {"a": ["1"], "b": ["2", "3"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not valid JSON"),
        ([1], 'line 2 must be an object with the strings "task" and "prompt"'),
        ({"task": "roman", "prompt": 1}, "line 2 must be an object"),
        ({"task": "roman", "prompt": ""}, "line 2 has an empty prompt"),
        ({"task": "romn", "prompt": "x"}, "line 2: no model is called 'romn'; did you mean 'roman'"),
        ({"task": "zzz", "prompt": "x"}, "the recipe has dates, roman"),
        ({"task": "roman", "prompt": "x", "answr": 1}, "line 2 has the unknown key 'answr'; did you mean 'answer'"),
        ({"task": "roman", "message": []}, "line 2 has the unknown key 'message'; did you mean 'messages'"),
        ({"task": "roman", "prompt": "x", "answer": 1}, "line 2: answer must be a string"),
        ({"task": "roman", "messages": []}, "line 2: messages must be a list of objects with role and content"),
        ({"task": "roman", "messages": [{"role": "user"}]}, "line 2: each of the messages must have the strings role"),
        ({"task": "roman", "messages": [{"role": "system", "content": "x"}]}, "line 2 has no user message"),
        ({"task": "roman", "prompt": "x"}, "has no prompt of dates"),
    ],
)
def test_faults_are_named(tmp_path: Path, line: object, message: str) -> None:
    file = write(tmp_path / "p.jsonl", {"task": "roman", "prompt": "1"}, line)
    with pytest.raises(CalibrationError, match=message):
        read_prompts(file, ["roman", "dates"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read the calibration file at .*gone"):
        read_prompts(tmp_path / "gone.jsonl", ["a"])


SYSTEM, ASKED, TOLD, AGAIN = (
    {"role": role, "content": text}
    for role, text in (("system", "Be brief."), ("user", "7?"), ("assistant", "VII"), ("user", "8?"))
)


def test_conversations_are_read_up_to_the_reply(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl",
        {"task": "a", "messages": [SYSTEM, ASKED, TOLD], "id": 7, "label": "x"},
        {"task": "a", "messages": [ASKED, TOLD, AGAIN], "prompt_id": "9", "prompt": "7?", "answer": "VIII"},
        {"task": "a", "messages": [ASKED]},
        {"task": "a", "messages": [ASKED, TOLD]},
        {"task": "a", "prompt": "7?", "source": "book"},
    )
    system, asked, told, again = (Message(item["role"], item["content"]) for item in (SYSTEM, ASKED, TOLD, AGAIN))
    assert read_examples(file, ["a"])["a"] == [
        Example("7?", (system, asked), "VII"),
        Example("8?", (asked, told, again), "VIII"),
        Example("7?", (asked,), None),
        Example("7?", None, None),
    ]
    assert read_prompts(file, ["a"]) == {"a": ["7?", "8?"]}
