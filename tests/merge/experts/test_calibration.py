import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from merge.experts import CalibrationError, read_prompts
from merge.experts.calibration import continue_greedily, make_batches
from merge.experts.running import assign
from tests.merge.experts.conftest import World


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
        ("{", "line 2 is no JSON"),
        ([1], 'line 2 must be an object with the strings "task" and "prompt"'),
        ({"task": "roman", "prompt": 1}, "line 2 must be an object"),
        ({"task": "roman", "prompt": ""}, "line 2 has an empty prompt"),
        ({"task": "romn", "prompt": "x"}, "line 2: no model is called 'romn'; did you mean 'roman'"),
        ({"task": "zzz", "prompt": "x"}, "the recipe has dates, roman"),
        ({"task": "roman", "prompt": "x", "label": 1}, "line 2 has the unknown key 'label'"),
        ({"task": "roman", "prompt": "x"}, "has no prompt of dates"),
    ],
)
def test_faults_are_named(tmp_path: Path, line: object, message: str) -> None:
    file = write(tmp_path / "p.jsonl", {"task": "roman", "prompt": "1"}, line)
    with pytest.raises(CalibrationError, match=message):
        read_prompts(file, ["roman", "dates"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no readable calibration file at .*gone"):
        read_prompts(tmp_path / "gone.jsonl", ["a"])


PROMPTS = [[1, 5, 6, 7], [1, 9], [1, 5, 5, 5, 5, 5, 20], [1, 30, 31]]


def test_batched_continuations_equal_single_ones(world: World, model: PreTrainedModel) -> None:
    assign(model, world.fine_tunes["one"])

    def alone(prompt: list[int]) -> list[int]:
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    expected = [alone(prompt) for prompt in PROMPTS]
    assert continue_greedily(model, PROMPTS, 6, ()) == expected
    assert continue_greedily(model, PROMPTS, 6, (), batch_size=3) == expected
    end = expected[0][2]
    ended = continue_greedily(model, PROMPTS, 6, {end})
    cut = [reply[: reply.index(end) + 1] if end in reply else reply for reply in expected]
    assert ended == cut
    assert ended != expected


def test_batches_mark_what_is_real_and_what_predicts_the_reply() -> None:
    batches = make_batches([[1, 5, 6], [1, 9], [1, 2]], [[7], [8, 8, 8], [4]], 2)
    assert [batch.ids.tolist() for batch in batches] == [[[1, 2, 4, 0], [1, 5, 6, 7]], [[1, 9, 8, 8, 8]]]
    assert batches[0].real.tolist() == [[True, True, True, False], [True] * 4]
    assert batches[0].predicts.tolist() == [[False, True, False, False], [False, False, True, False]]
    assert batches[1].predicts.tolist() == [[False, True, True, True, False]]
