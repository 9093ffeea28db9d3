import random
import re

import pytest

from benchmarks.zoo.phrase import careless_example
from serve.demo.zoo import TASKS, Task


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_content_survives_carelessness(task: Task) -> None:
    rng = random.Random(0)
    answers = set()
    for _ in range(300):
        example = careless_example(task, rng)
        answers.add(example.answer)
        # A number of the content stays a number, and every brace has been filled in.
        assert "{" not in example.prompt
        if task.name in {"dates", "roman", "json", "shift"}:
            assert re.search(r"\d", example.prompt)
    assert len(answers) > 100


def test_half_of_the_requests_are_worded_exactly() -> None:
    task = next(task for task in TASKS if task.name == "reverse")
    rng = random.Random(0)
    wordings = task.phrasings + task.held_out_phrasings
    exact = 0
    for _ in range(600):
        example = careless_example(task, rng)
        word = example.answer[::-1]
        exact += example.prompt in {template.format(x=word) for template in wordings}
        assert word in example.prompt
    assert 300 <= exact < 480


def test_contents_are_training_contents() -> None:
    task = next(task for task in TASKS if task.name == "roman")
    rng = random.Random(0)
    test_answers = {task.draw_from("test", random.Random(seed)).answer for seed in range(800)}
    assert all(careless_example(task, rng).answer not in test_answers for _ in range(400))
