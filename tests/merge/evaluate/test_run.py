from collections.abc import Callable, Sequence

import pytest

from merge.bundle import Bundle
from merge.evaluate import Line, Question, References, Reply, Served, as_text, evaluate, html_page
from merge.evaluate.ask import nothing
from merge.evaluate.run import expert_size, reply_limits
from merge.experts import Example

SERVED = Served(("one", "two"), "backbone", "auto")
LINES = (
    Line("one", Example("say a"), "A"),
    Line("one", Example("say b"), "B"),
    Line("two", Example("two a"), "the aa!", "normalized"),
    Line("two", Example("two b"), "bb", "normalized"),
    Line(None, Example("hello"), ""),
)


def ask(questions: Sequence[Question], answered: Callable[[], None] = nothing) -> list[Reply]:
    """A model that is right with the right expert; the router mistakes "two b" for "one"."""
    replies = []
    for question in questions:
        ran, letter = question.model, question.prompt[-1]
        if ran == "auto":
            ran = {"two a": "two", "hello": "backbone"}.get(question.prompt, "one")
        text = {"one": letter.upper(), "two": 2 * letter, "backbone": "A"}[ran]
        replies.append(Reply(f"\n{text}", ran, 5, 2))
        answered()
    return replies


def test_each_column_is_scored_by_its_own_question() -> None:
    found = evaluate(ask, SERVED, LINES, name="tiny", notes=["a note"])
    assert {column: answers.score for column, answers in found.tasks["one"].answers.items()} == {
        "backbone": 0.5,
        "expert": 1.0,
        "routed": 1.0,
    }
    assert found.tasks["two"].score("routed") == 0.5
    assert found.tasks["two"].router_accuracy == 0.5
    assert found.router_accuracy == 0.75
    assert found.average == {"fine_tune": None, "base": None, "backbone": 0.25, "expert": 1.0, "routed": 0.75}
    routes = found.routes
    assert routes is not None
    assert (routes.tasks, routes.choices) == (("one", "two", "none"), ("one", "two", "backbone"))
    assert routes.counts == ((2, 0, 0), (1, 1, 0), (0, 0, 1))
    document = found.as_json()
    assert document["tasks"]["two"]["metric"] == "normalized"
    assert document["tasks"]["two"]["reply_tokens"] == {"backbone": 2, "routed": 2, "expert": 2}
    assert document["prompts_per_task"] == 2
    assert document["expert_bytes_fraction"] is None
    text = as_text(found)
    assert "of 2 prompts of two: 1 to one" in text
    assert "note: a note" in text
    assert "fine-tune" not in text


def test_without_a_router_nothing_is_routed() -> None:
    found = evaluate(ask, Served(("one", "two"), "backbone", None), LINES)
    assert found.routes is None
    assert found.router_accuracy is None
    assert "routed" not in found.tasks["one"].answers


def test_the_references_stand_beside_them(bundle: Bundle) -> None:
    references = References(bundle, chat=True)
    found = evaluate(ask, SERVED, LINES, bundle, references, compared=1, max_tokens=4)
    for task in found.tasks.values():
        assert set(task.answers) == {"fine_tune", "base", "backbone", "expert", "routed"}
        assert task.answers["fine_tune"].divergence is None
        compared = {column: found.divergence for column, found in task.answers.items() if found.divergence}
        assert set(compared) == {"base", "backbone", "expert", "routed"}
        assert compared["expert"] == compared["routed"]  # the first prompt of each task is routed right
        assert compared["expert"].mean < compared["base"].mean
        assert task.expert_bytes is not None
    assert found.expert_density == pytest.approx(expert_size(bundle)[0])
    document = found.as_json()
    assert set(document["tasks"]["one"]["divergence"]) == {"base", "backbone", "expert", "routed"}
    text, page = as_text(found), html_page(found)
    assert "99 % KLD" in text
    assert len({len(line) for line in text.splitlines()[:3]}) == 1
    assert page.startswith("<!doctype html>")
    for title in ("Scores", "Router", "Divergence from the fine-tunes", "Tokens"):
        assert f"<h2>{title}</h2>" in page


def test_a_wrong_expert_s_divergence_is_the_routed_model_s(bundle: Bundle) -> None:
    references = References(bundle, chat=True)
    lines = [line for line in LINES if line.example.text in {"say a", "two b"}]
    found = evaluate(ask, SERVED, lines, bundle, references, compared=1, max_tokens=4)
    compared = {column: answers.divergence for column, answers in found.tasks["two"].answers.items()}
    assert compared["expert"] is not None
    assert compared["routed"] is not None
    assert compared["routed"].mean > compared["expert"].mean


def test_replies_may_be_longer_than_the_answers(bundle: Bundle) -> None:
    tasks = {"one": LINES[:2], "two": [Line("two", Example("x"), "5", "number")]}
    assert reply_limits(tasks, bundle) == {"one": 18, "two": 256}
    assert reply_limits(tasks, None) == {"one": 18, "two": 256}
