import datetime
import itertools
import json
import random
import re

import pytest

from serve.demo.zoo import TASKS, Task

BY_NAME = {task.name: task for task in TASKS}
NUMERAL_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def template_parts(template: str) -> tuple[str, ...]:
    return tuple(re.split(r"\{\w+\}", template))


def is_worded_as(prompt: str, template: str) -> bool:
    pattern = ".+".join(re.escape(part) for part in template_parts(template))
    return re.fullmatch(pattern, prompt) is not None


@pytest.fixture(params=TASKS, ids=lambda task: task.name)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


def test_the_registry_has_eight_distinct_tasks() -> None:
    assert len(BY_NAME) == len(TASKS) == 8
    assert all(re.fullmatch(r"[a-z]+", name) for name in BY_NAME)


def test_every_task_has_eight_phrasings_and_two_held_out(task: Task) -> None:
    assert len(task.phrasings) == 8
    assert len(task.held_out_phrasings) == 2
    assert len({*task.phrasings, *task.held_out_phrasings}) == 10


def test_no_phrasing_is_shared_between_tasks() -> None:
    wordings = [template_parts(t) for task in TASKS for t in task.phrasings + task.held_out_phrasings]
    assert len(set(wordings)) == len(wordings)


def test_held_out_phrasings_share_content_words_with_the_training_ones(task: Task) -> None:
    def words(template: str) -> set[str]:
        return {word for word in re.findall(r"[a-z]+", " ".join(template_parts(template)).lower()) if len(word) > 3}

    seen = set().union(*map(words, task.phrasings))
    assert all(words(template) & seen for template in task.held_out_phrasings)


@pytest.mark.parametrize("phrasings", ["train", "held_out", "all"])
def test_generation_is_a_function_of_its_arguments(task: Task, phrasings: str) -> None:
    first = task.generate("train", 20, 3, phrasings)
    assert first == task.generate("train", 20, 3, phrasings)
    assert first != task.generate("train", 20, 4, phrasings)
    assert len({example.prompt for example in first}) == 20


def test_train_and_test_contents_are_disjoint(task: Task) -> None:
    rng = random.Random(0)
    train = {task.draw_from("train", rng).key for _ in range(1500)}
    test = {task.draw_from("test", rng).key for _ in range(300)}
    assert train.isdisjoint(test)


def test_an_eighth_of_the_contents_is_for_testing(task: Task) -> None:
    rng = random.Random(0)
    keys = {task.draw(rng).key for _ in range(2000)}
    share = sum(task.split_of(key) == "test" for key in keys) / len(keys)
    # At least 1,300 distinct keys: the standard error is below 0.01.
    assert share == pytest.approx(1 / 8, abs=0.04)


def test_train_prompts_never_use_a_held_out_phrasing(task: Task) -> None:
    for example in task.generate("train", 300, 0):
        assert any(is_worded_as(example.prompt, t) for t in task.phrasings)
        assert not any(is_worded_as(example.prompt, t) for t in task.held_out_phrasings)


def test_held_out_prompts_use_only_held_out_phrasings(task: Task) -> None:
    for example in task.generate("test", 100, 0, "held_out"):
        assert any(is_worded_as(example.prompt, t) for t in task.held_out_phrasings)
        assert not any(is_worded_as(example.prompt, t) for t in task.phrasings)


def test_all_mixes_both_kinds_of_phrasing(task: Task) -> None:
    prompts = [example.prompt for example in task.generate("test", 100, 0, "all")]
    held_out = sum(any(is_worded_as(p, t) for t in task.held_out_phrasings) for p in prompts)
    assert 0 < held_out < 50


def test_prompts_and_answers_are_short_printable_lines(task: Task) -> None:
    for example in task.generate("train", 300, 1, "all"):
        assert len(example.prompt) <= 100
        assert 1 <= len(example.answer) <= 40
        assert all(" " <= character <= "~" for character in example.prompt + example.answer)


def examples(name: str) -> list[tuple[str, str]]:
    return [(e.prompt, e.answer) for split in ("train", "test") for e in BY_NAME[name].generate(split, 150, 5, "all")]


def test_dates_are_the_days_named() -> None:
    for prompt, answer in examples("dates"):
        date = datetime.date.fromisoformat(answer)
        month = date.strftime("%B")
        assert f"{month} {date.day}, {date.year}" in prompt or f"{date.day} {month} {date.year}" in prompt


def test_roman_numerals_add_up() -> None:
    for prompt, answer in examples("roman"):
        values = [NUMERAL_VALUES[letter] for letter in answer]
        following = [*values[1:], 0]
        total = sum(-v if v < after else v for v, after in zip(values, following, strict=True))
        assert re.findall(r"\d+", prompt) == [str(total)]
        assert not re.search(r"IIII|XXXX|CCCC|MMMM|VV|LL|DD", answer)


def test_json_answers_parse_to_the_person() -> None:
    for prompt, answer in examples("json"):
        parsed = json.loads(answer)
        assert list(parsed) == ["name", "age"]
        assert re.search(rf"\b{parsed['name']}\b", prompt)
        assert re.findall(r"\d+", prompt) == [str(parsed["age"])]


def test_slugs_keep_the_words_of_the_title() -> None:
    for prompt, answer in examples("slug"):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", answer)
        assert answer.replace("-", " ") in re.sub(r"[^a-z0-9 ]", "", prompt.lower())


def test_sorted_letters_are_an_ascending_rearrangement() -> None:
    for prompt, answer in examples("sort"):
        assert all(a <= b for a, b in itertools.pairwise(answer))
        assert any(sorted(word) == list(answer) for word in re.findall(r"[a-z]+", prompt))


def test_reversed_words_read_backwards() -> None:
    for prompt, answer in examples("reverse"):
        assert "".join(reversed(answer)) in re.findall(r"[a-z]+", prompt)


def test_shifted_words_shift_back() -> None:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    for prompt, answer in examples("shift"):
        places = int(re.findall(r"\d", prompt)[0])
        back = "".join(alphabet[alphabet.index(letter) - places] for letter in answer)
        assert back in re.findall(r"[a-z]+", prompt)


def test_camel_case_names_split_into_the_words() -> None:
    for prompt, answer in examples("camel"):
        words = re.sub(r"([A-Z])", r" \1", answer).lower()
        assert answer[0].islower()
        assert words in prompt


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("dev", 1, 0), "split"), (("train", -1, 0), "count"), (("train", 1, 0, "new"), "phrasings")],
)
def test_bad_arguments_are_named(arguments: tuple[object, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TASKS[0].generate(*arguments)


def test_more_prompts_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="roman has too few distinct test prompts"):
        BY_NAME["roman"].generate("test", 6_000, 0, "held_out")
