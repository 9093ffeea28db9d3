import numpy as np
import pytest

from serve.decision import Decision, mixed
from serve.router import Router
from serve.sessions import followed
from tests.merge.bundle.test_router_model import make_router

NAMES = ("bank", "sql")


def alone(bank: float, sql: float, threshold: float = 0.3) -> Decision:
    chances = np.array([bank, sql])
    best = int(chances.argmax())
    if chances[best] < threshold:
        return Decision(None, 1.0 - float(chances.sum()), NAMES, chances)
    return Decision(NAMES[best], float(chances[best]), NAMES, chances, ((NAMES[best], 1.0),))


@pytest.mark.parametrize(
    ("turns", "expert", "session"),
    [
        ([(0.9, 0.0)], "bank", None),
        ([(0.9, 0.0), (0.1, 0.1)], "bank", "kept"),  # "shorter, please"
        ([(0.9, 0.0), (0.1, 0.4)], "bank", "kept"),  # the other one, but not clearly
        ([(0.9, 0.0), (0.3, 0.6)], "bank", "kept"),
        ([(0.9, 0.0), (0.1, 0.8)], "sql", "switched"),
        ([(0.9, 0.0), (0.1, 0.8), (0.1, 0.1)], "sql", "kept"),
        ([(0.9, 0.0), (0.1, 0.1), (0.8, 0.0)], "bank", None),
        ([(0.1, 0.1), (0.0, 0.4)], "sql", None),  # no expert had the chat
        ([(0.1, 0.1), (0.0, 0.1)], None, None),
    ],
)
def test_a_chat_changes_its_expert_only_for_a_clear_message(turns, expert: str | None, session: str | None) -> None:
    decision = followed([alone(*turn) for turn in turns])
    assert (decision.expert, decision.session) == (expert, session)
    np.testing.assert_array_equal(decision.chances, turns[-1])
    assert decision.mix == (() if expert is None else ((expert, 1.0),))


def test_a_router_follows_chats_unless_told_not_to() -> None:
    texts = ["sort the letters", "xyz"]
    model = make_router()
    one = Router(model, threshold=0.0, sessions=False)
    assert one.decide_chat(texts).expert == one.decide(texts[-1]).expert
    assert one.decide_chat(texts).session is None
    both = Router(model, threshold=0.0)
    assert both.decide_chat(texts[-1:]).session is None
    held = followed([both.decide(text) for text in texts])
    assert (both.decide_chat(texts).expert, both.decide_chat(texts).session) == (held.expert, held.session)
    assert not one.without("task0").sessions


def test_experts_that_are_close_are_mixed() -> None:
    chances = np.array([0.2, 0.4, 0.3, 0.05])
    names = ("a", "b", "c", "d")
    assert mixed(names, chances, 1) == (("b", 1.0),)
    assert mixed(names, chances, 2) == (("b", pytest.approx(4 / 7)), ("c", pytest.approx(3 / 7)))
    assert [name for name, _ in mixed(names, chances, 8)] == ["b", "c", "a"]
    assert mixed(names, np.array([0.9, 0.1, 0.0, 0.0]), 2) == (("a", 1.0),)


def test_near_ties_and_abstentions() -> None:
    assert alone(0.5, 0.3).near_tie
    assert not alone(0.6, 0.1).near_tie
    assert not alone(0.1, 0.1).near_tie
    assert alone(0.1, 0.1).abstention == "none"
    assert alone(0.5, 0.2, threshold=0.6).abstention == "unsure"
    assert alone(0.9, 0.0).abstention is None
