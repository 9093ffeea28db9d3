import json
from dataclasses import replace
from pathlib import Path

import pytest

from merge.check import general
from merge.check.general import (
    GeneralAbility,
    Question,
    answers,
    general_questions,
    general_reference,
    general_texts,
    right_answers,
)
from merge.checkpoint import open_checkpoint
from serve.demo.tiny import models_dir
from tests.merge.tiny import save_tiny

PARIS = Question("What is the capital of France?", "Paris")


@pytest.fixture
def _any_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few questions, of which the base need not answer any: the tiny models know no capitals."""
    monkeypatch.setattr(general, "LEAST_KNOWN", 0)
    monkeypatch.setattr(general, "general_questions", lambda: (PARIS, Question("What do bees make?", "honey")))
    monkeypatch.setattr(general, "general_texts", lambda: ("Rain falls on the hills.",))


def test_an_answer_is_right_where_it_has_the_keyword():
    assert answers(PARIS, "It is PARIS, of course.")
    assert not answers(PARIS, "The capital of France is Lyon.")
    assert right_answers([PARIS, PARIS], ["Paris", ""]) == 1


@pytest.mark.parametrize(
    ("said", "kept", "example"),
    [
        (("Paris.", "They make honey."), 1.0, None),
        (("Paris.", "They make wax."), 1.0, None),  # the base is wrong there, so nothing can be lost
        (("Lyon.", "They make honey."), 0.0, (PARIS.prompt, "It is Paris", "Lyon.")),
    ],
)
@pytest.mark.usefixtures("_any_base")
def test_only_right_answers_can_be_lost(
    monkeypatch: pytest.MonkeyPatch, said: tuple[str, str], kept: float, example: tuple[str, str, str] | None
):
    base = open_checkpoint(models_dir() / "base")
    reference = general_reference(base)
    assert reference is not None
    reference = replace(reference, said=("It is Paris", "They make milk"), known=1)
    monkeypatch.setattr(general, "decoded", lambda *_: list(said))
    found = reference.compare(base)
    assert (found.kept, found.example) == (kept, example)


def test_questions_and_texts_are_shipped():
    assert len(general_questions()) == len({question.prompt for question in general_questions()}) == 50
    assert all(question.keyword for question in general_questions())
    assert len(general_texts()) == 8


@pytest.mark.usefixtures("_any_base")
def test_the_base_itself_has_lost_nothing():
    base = open_checkpoint(models_dir() / "base")
    reference = general_reference(base)
    assert reference is not None
    found = reference.compare(base)
    assert (found.divergence, found.kept, found.perplexity_ratio) == (0.0, 1.0, 1.0)
    assert (found.questions, found.example) == (2, None)
    assert found.concerns() == []


@pytest.mark.usefixtures("_any_base")
def test_another_model_is_warned_of():
    reference = general_reference(open_checkpoint(models_dir() / "base"))
    assert reference is not None
    found = reference.compare(open_checkpoint(models_dir() / "fine_tunes" / "sort"))
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
        "general questions: 20% of the right answers are kept, less than 90%: 'What is the capital of France?' was "
        "answered 'Paris.' and is now answered 'la, la'",
        "plain text: the perplexity is 1.100 times the base's",
    ]
    assert json.dumps(lost.summary()).count("0.500") == 1
    assert GeneralAbility(0.1, 0.9, 1.03, 50, 40, None).concerns() == []
