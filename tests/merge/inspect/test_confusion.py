import pytest

from merge.inspect.confusion import NONE, cross_validated
from merge.router import RouterConfig
from tests.merge.inspect.conftest import WORDINGS

PROMPTS = {task: [w.format(f"w{i}x{j}") for i, w in enumerate(ws) for j in range(6)] for task, ws in WORDINGS.items()}


def test_every_prompt_is_routed_once() -> None:
    found = cross_validated(PROMPTS, RouterConfig(bits=10, decoys=0), folds=3)
    assert found.tasks == ("one", "two")
    assert found.choices == ("one", "two", NONE)
    assert [sum(row) for row in found.counts] == [30, 30]
    assert found.accuracy == (found.counts[0][0] + found.counts[1][1]) / 60


def test_wordings_that_say_nothing_of_each_other_are_not_learnt_by_heart() -> None:
    """Trained on all of its prompts a router knows them; judged on unseen wordings it must do worse."""
    words = ["apple", "brick", "cloud", "dough", "eagle", "flute", "grape", "house"]
    letters = iter("abcdefghijklmnopqrstuvwxyzαβγδεζ")
    prompts = [f"{word} {next(letters)}" for word in words for _ in range(4)]
    apart = {"one": prompts[:16], "two": prompts[16:]}
    assert cross_validated(apart, RouterConfig(bits=10, decoys=0), folds=4).accuracy < 0.7


def test_too_few_prompts_are_named() -> None:
    with pytest.raises(ValueError, match="task 'b' has 3 prompts; 4 folds need 8"):
        cross_validated({"a": PROMPTS["one"], "b": ["x", "y", "z"]}, RouterConfig())
