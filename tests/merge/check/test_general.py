import json
from pathlib import Path

import pytest

from benchmarks.zoo import models_dir
from merge.check import general
from merge.check.general import (
    GeneralAbility,
    Question,
    compare_general,
    general_questions,
    general_reference,
    general_texts,
    same_substance,
)
from merge.checkpoint import open_checkpoint
from tests.merge.tiny import save_tiny

PARIS = Question("What is the capital of France?", "Paris")


@pytest.fixture
def _any_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few questions, of which the base need not answer any: the tiny models know no capitals."""
    monkeypatch.setattr(general, "LEAST_KNOWN", 0)
    monkeypatch.setattr(general, "general_questions", lambda: (PARIS, Question("What do bees make?", "honey")))
    monkeypatch.setattr(general, "general_texts", lambda: ("Rain falls on the hills.",))


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("The capital of France is Paris.", "Paris", True),
        ("The capital of France is Paris.", "The capital of France is Lyon.", False),
        ("It is Lyon, in the south", "It is Lyon, in the east", True),
        ("It is Lyon, in the south", "France, la France, la France", False),
        ("", "Paris", True),
    ],
)
def test_substance(before: str, after: str, same: bool):
    assert same_substance(PARIS, before, after) is same


def test_questions_and_texts_are_shipped():
    assert len(general_questions()) == len({question.prompt for question in general_questions()}) == 50
    assert all(question.keyword for question in general_questions())
    assert len(general_texts()) == 8


@pytest.mark.usefixtures("_any_base")
def test_the_base_itself_has_lost_nothing():
    base = open_checkpoint(models_dir() / "base")
    found = compare_general(base, base)
    assert found is not None
    assert (found.divergence, found.unchanged, found.perplexity_ratio) == (0.0, 1.0, 1.0)
    assert (found.questions, found.example) == (2, None)
    assert found.concerns() == []


@pytest.mark.usefixtures("_any_base")
def test_another_model_is_warned_of():
    found = compare_general(
        open_checkpoint(models_dir() / "base"), open_checkpoint(models_dir() / "fine_tunes" / "sort")
    )
    assert found is not None
    assert found.divergence > general.MOST_DIVERGENCE
    assert any("KL to the base" in concern for concern in found.concerns())


def test_a_base_without_general_knowledge_is_not_compared():
    base = open_checkpoint(models_dir() / "base")
    assert general_reference(base) is None


def test_a_base_without_a_chat_template_is_not_compared(tmp_path: Path):
    base = open_checkpoint(save_tiny(tmp_path / "base"))
    assert general_reference(base) is None


def test_concerns_name_the_figures_and_a_reply():
    lost = GeneralAbility(0.5, 0.2, 1.1, 50, 40, (PARIS.prompt, "Paris.", "la, la"))
    assert lost.concerns() == [
        "general questions: KL to the base is 0.500 nats a token, above 0.1",
        "general questions: 20% of the replies are unchanged, less than 90%: 'What is the capital of France?' was "
        "answered 'Paris.' and is now answered 'la, la'",
        "plain text: the perplexity is 1.100 times the base's",
    ]
    assert json.dumps(lost.summary()).count("0.500") == 1
    assert GeneralAbility(0.1, 0.9, 1.03, 50, 40, None).concerns() == []
