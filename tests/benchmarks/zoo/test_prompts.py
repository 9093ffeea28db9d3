import json
from pathlib import Path

import pytest

import serve.demo.zoo
from benchmarks.zoo.prompts import write_prompts
from serve.demo.zoo import TASKS

SHIPPED = Path(serve.demo.zoo.__file__).parent / "prompts.jsonl"


def test_lines_name_their_task_and_answer(tmp_path: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", per_task=3, seed=7)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    expected = [(t.name, e.prompt, e.answer) for t in TASKS for e in t.generate("train", 3, 7)]
    assert [(line["task"], line["prompt"], line["answer"]) for line in lines] == expected
    assert all(len(line) == 3 for line in lines)


def test_the_shipped_file_is_reproducible(tmp_path: Path) -> None:
    write_prompts(tmp_path / "p.jsonl")
    assert (tmp_path / "p.jsonl").read_bytes() == SHIPPED.read_bytes()
    assert len(SHIPPED.read_text().splitlines()) == 64 * len(TASKS)


def test_a_negative_number_of_prompts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count is -1"):
        write_prompts(tmp_path / "p.jsonl", per_task=-1)
    assert not (tmp_path / "p.jsonl").exists()
