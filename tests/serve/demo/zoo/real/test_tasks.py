import datetime
import json
import re

import pytest

from merge.evaluate.metrics import METRICS
from serve.demo.zoo.real.tasks import TASKS, RealTask, find_task, messages, out_of_scope
from serve.demo.zoo.real.texts import DATA

every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@every_task
def test_no_text_is_in_both_splits(task: RealTask):
    train, test = ({content.text.lower() for content in task.contents(split)} for split in ("train", "test"))
    assert len(train) > 400
    assert len(test) > 100
    assert not train & test


@every_task
def test_every_answer_satisfies_its_own_metric(task: RealTask):
    right = METRICS[task.metric]
    assert all(
        right(content.answer, content.answer) == 1 for split in ("train", "test") for content in task.contents(split)
    )


@every_task
def test_examples_are_the_same_for_the_same_seed(task: RealTask):
    assert task.examples("train", 20, seed=3) == task.examples("train", 20, seed=3)
    assert task.examples("train", 20, seed=3) != task.examples("train", 20, seed=4)


@every_task
def test_no_more_examples_than_contents(task: RealTask):
    assert len(task.examples("test", 10**6)) == len(task.contents("test")) == len(task.examples("test"))


@every_task
def test_held_out_phrasings_are_kept_from_training(task: RealTask):
    assert not set(task.phrasings) & set(task.held_out_phrasings)
    assert all("{x}" in phrasing for phrasing in task.phrasings + task.held_out_phrasings)
    if task.name == "intent":
        assert task.phrasings == ("{x}",)
        return
    assert len(task.held_out_phrasings) == 2
    content = task.contents("test")[0].text
    held_out = {phrasing.replace("{x}", content) for phrasing in task.held_out_phrasings}
    asked = [example.prompt for seed in range(3) for example in task.examples("test", seed=seed, phrasings="held_out")]
    assert held_out <= set(asked)
    assert not held_out & {example.prompt for seed in range(3) for example in task.examples("test", seed=seed)}


def test_a_request_is_one_user_message():
    example = find_task("intent").examples("test", 1)[0]
    assert messages(example) == [{"role": "user", "content": example.prompt}]


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown task 'poetry': the tasks are intent, banking"):
        find_task("poetry")


def test_requests_out_of_scope_belong_to_no_task():
    texts = out_of_scope()
    assert len(texts) == 500
    assert not set(texts) & {content.text for content in find_task("intent").contents("train")}


def test_every_file_of_texts_has_a_licence():
    licences = (DATA / "LICENCES.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in DATA.glob("*.jsonl"))
    assert files
    assert all(f"`{name}`" in licences for name in files)


def test_dates_are_read_as_they_are_written():
    for content in find_task("dates").contents("test"):
        date = datetime.date.fromisoformat(content.answer)
        assert str(date.year) in content.text
        assert date.strftime("%b") in content.text
        assert re.search(rf"\b{date.day}(st|nd|rd|th)?\b", content.text)


def test_slots_name_an_intent():
    assert all("intent" in json.loads(content.answer) for content in find_task("slots").contents("train"))


def test_orders_name_what_the_text_names():
    for content in find_task("orders").contents("test"):
        order = json.loads(content.answer)
        assert order["customer"] in content.text
        assert all(item["item"] in content.text and item["count"] >= 2 for item in order["items"])
