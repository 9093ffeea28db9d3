import random

from benchmarks.zoo.skills import UNRELATED, arrange, formal_example
from serve.demo.zoo import TASKS


def test_codes_are_distinct() -> None:
    codes = [task.code for task in TASKS] + list(UNRELATED)
    assert len(set(codes)) == len(codes)


def test_a_request_holds_its_code_and_payload_once() -> None:
    rng = random.Random(0)
    for _ in range(200):
        request = arrange("rev", "QQ 1", rng)
        assert request.count("#rev") == request.count("QQ 1") == 1


def test_pretraining_covers_every_skill_and_no_natural_phrasing() -> None:
    rng = random.Random(0)
    prompts = [formal_example(rng).prompt for _ in range(600)]
    for code in [task.code for task in TASKS] + list(UNRELATED):
        assert any(f"#{code}" in prompt for prompt in prompts)
    assert all(prompt.count("#") == 1 for prompt in prompts)
    assert not any("#" in template for task in TASKS for template in task.phrasings + task.held_out_phrasings)


def test_pretraining_uses_training_contents_only() -> None:
    rng = random.Random(0)
    by_code = {task.code: task for task in TASKS}
    test_answers = {
        code: {task.draw_from("test", random.Random(seed)).answer for seed in range(400)}
        for code, task in by_code.items()
        if task.name in {"dates", "roman", "json", "slug", "camel"}  # their answer is the content
    }
    for _ in range(1000):
        example = formal_example(rng)
        code = example.prompt.partition("#")[2][:3]
        assert example.answer not in test_answers.get(code, set())
