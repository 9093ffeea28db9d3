from pathlib import Path

import pytest

from serve.engine import Request
from serve.engine.sequence import Sequence
from serve.engine.waiting import WaitingQueue
from serve.experts import ExpertVersion


def sequence(name: str, expert: str | None = None, priority: int = 0, arrival: float = 0.0) -> Sequence:
    experts = () if expert is None else ((ExpertVersion(expert, Path(expert), expert, 1), 1.0),)
    return Sequence(Request(name, (1, 2, 3), priority=priority, arrival=arrival), experts, seed=0)


def enqueue(queue: WaitingQueue, *sequences: Sequence) -> None:
    for one in sequences:
        queue.enter(one.group)
        queue.push(one)


def served(queue: WaitingQueue, tokens: int = 10) -> list[str]:
    """Ids in the order in which they are served, each for as many tokens."""
    order = []
    while (head := queue.head(set())) is not None:
        queue.remove(head)
        queue.charge(head.group, tokens)
        order.append(head.request.request_id)
    return order


def test_within_a_group_priority_comes_before_arrival() -> None:
    queue = WaitingQueue()
    enqueue(queue, sequence("late", arrival=2.0), sequence("early", arrival=1.0), sequence("urgent", None, -1, 3.0))
    assert len(queue) == 3
    assert queue.tokens == 9
    assert served(queue) == ["urgent", "early", "late"]
    assert (len(queue), queue.tokens) == (0, 0)


def test_groups_take_turns() -> None:
    queue = WaitingQueue()
    enqueue(queue, *(sequence(f"a{n}", "a", arrival=n) for n in range(4)))
    enqueue(queue, *(sequence(f"b{n}", "b", arrival=10 + n) for n in range(2)))
    assert served(queue) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_priority_comes_before_shares() -> None:
    queue = WaitingQueue()
    enqueue(queue, sequence("a0", "a"), sequence("b0", "b", priority=-1))
    queue.charge(("b",), 1000)
    assert served(queue) == ["b0", "a0"]


def test_a_group_that_comes_back_has_no_saved_claim() -> None:
    queue = WaitingQueue()
    enqueue(queue, sequence("a0", "a"))
    queue.charge(("a",), 100)
    enqueue(queue, sequence("b0", "b"))
    assert queue.served(("b",)) == 100


def test_a_group_that_leaves_keeps_its_debt_while_others_are_there() -> None:
    queue = WaitingQueue()
    a = sequence("a0", "a")
    enqueue(queue, a, sequence("b0", "b"))
    queue.charge(("a",), 100)
    queue.remove(a)
    queue.leave(a.group)
    enqueue(queue, sequence("a1", "a"))
    assert queue.served(("a",)) == 100


def test_groups_can_be_passed_and_any_sequence_removed() -> None:
    queue = WaitingQueue()
    first, second, third = (sequence(str(n), "a", arrival=n) for n in range(3))
    enqueue(queue, first, second, third, sequence("b", "b", arrival=9))
    queue.remove(second)
    assert queue.head({("b",)}) is first
    assert queue.head({("a",), ("b",)}) is None
    queue.remove(first)
    assert queue.head({("b",)}) is third


@pytest.mark.parametrize("experts", [("a", "b"), ("b", "a")])
def test_equal_mixes_are_one_group(experts: tuple[str, str]) -> None:
    versions = tuple((ExpertVersion(name, Path(name), name, 1), 0.5) for name in experts)
    assert Sequence(Request("x", (1,)), versions, 0).group == ("a", "b")
