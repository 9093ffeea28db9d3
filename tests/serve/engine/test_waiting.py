from pathlib import Path

import pytest

from serve.engine import Request
from serve.engine.lines import Line, LineHeap
from serve.engine.sequence import Sequence
from serve.engine.waiting import WaitingQueue
from serve.experts import ExpertVersion


def sequence(name: str, expert: str | None = None, priority: int = 0, arrival: float = 0.0) -> Sequence:
    experts = () if expert is None else ((ExpertVersion(expert, Path(expert), expert, 1), 1.0),)
    return Sequence(Request(name, (1, 2, 3), priority=priority, arrival=arrival), experts, seed=0)


def enqueue(queue: WaitingQueue, *sequences: Sequence) -> None:
    for one in sequences:
        line = queue.add(one)
        if len(line) == 1:
            queue.open(line)


def first(queue: WaitingQueue) -> Sequence | None:
    line = queue.first()
    return None if line is None else line.head


def first_name(queue: WaitingQueue) -> str:
    head = first(queue)
    assert head is not None
    return head.request.request_id


def served(queue: WaitingQueue, tokens: int = 10) -> list[str]:
    """Ids in the order in which they are served, each for as many tokens."""
    order = []
    while (head := first(queue)) is not None:
        queue.remove(head)
        queue.charge(head.group, tokens)
        order.append(head.request.request_id)
    return order


@pytest.fixture
def queue() -> WaitingQueue:
    return WaitingQueue(passes=100)


def test_within_a_group_priority_comes_before_arrival(queue: WaitingQueue) -> None:
    enqueue(queue, sequence("late", arrival=2.0), sequence("early", arrival=1.0), sequence("urgent", None, -1, 3.0))
    assert len(queue) == 3
    assert queue.tokens == 9
    assert served(queue) == ["urgent", "early", "late"]
    assert (len(queue), queue.tokens) == (0, 0)


def test_groups_take_turns(queue: WaitingQueue) -> None:
    enqueue(queue, *(sequence(f"a{n}", "a", arrival=n) for n in range(3)))
    enqueue(queue, *(sequence(f"b{n}", "b", arrival=10 + n) for n in range(3)))
    assert served(queue) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_group_that_twice_as_many_ask_for_has_twice_the_share(queue: WaitingQueue) -> None:
    enqueue(queue, *(sequence(f"a{n}", "a", arrival=n) for n in range(4)))
    enqueue(queue, *(sequence(f"b{n}", "b", arrival=10 + n) for n in range(2)))
    assert served(queue) == ["a0", "b0", "a1", "a2", "b1", "a3"]


def test_priority_comes_before_shares(queue: WaitingQueue) -> None:
    enqueue(queue, sequence("a0", "a"), sequence("b0", "b", priority=-1))
    queue.charge(("b",), 1000)
    assert served(queue) == ["b0", "a0"]


def test_a_group_that_comes_back_has_no_saved_claim(queue: WaitingQueue) -> None:
    enqueue(queue, sequence("a0", "a"))
    queue.charge(("a",), 100)
    enqueue(queue, sequence("b0", "b"))
    assert queue.line(("b",)).service == 100


def test_a_new_group_begins_at_the_virtual_time_and_not_below(queue: WaitingQueue) -> None:
    """Between two groups of which one was served 100 tokens, a third one has missed 50."""
    enqueue(queue, sequence("a0", "a"), sequence("b0", "b"))
    queue.charge(("a",), 100)
    enqueue(queue, sequence("c0", "c"))
    assert queue.line(("c",)).service == 50


def test_a_group_that_leaves_keeps_its_debt_while_others_are_there(queue: WaitingQueue) -> None:
    a = sequence("a0", "a")
    enqueue(queue, a, sequence("b0", "b"))
    queue.charge(("a",), 100)
    queue.remove(a)
    queue.leave(a.group)
    enqueue(queue, sequence("a1", "a"))
    assert queue.line(("a",)).service == 100


def test_debts_are_forgotten_when_nobody_is_left(queue: WaitingQueue) -> None:
    a, b = sequence("a0", "a"), sequence("b0", "b")
    enqueue(queue, a, b)
    queue.charge(("a",), 100)
    for one in (a, b):
        queue.remove(one)
        queue.leave(one.group)
    enqueue(queue, sequence("a1", "a"), sequence("b1", "b"))
    assert queue.line(("a",)).service == queue.line(("b",)).service


def test_groups_can_be_passed_and_any_sequence_removed(queue: WaitingQueue) -> None:
    one, two, three = (sequence(str(n), "a", arrival=n) for n in range(3))
    enqueue(queue, one, two, three, sequence("b", "b", arrival=9))
    queue.remove(two)
    queue.close(queue.line(("b",)))
    assert first(queue) is one
    queue.close(queue.line(("a",)))
    assert first(queue) is None
    queue.open(queue.line(("a",)))
    queue.remove(one)
    assert first(queue) is three


def test_a_sequence_is_passed_by_so_many_and_no_more() -> None:
    queue = WaitingQueue(passes=2)
    enqueue(queue, sequence("a0", "a"), *(sequence(f"b{n}", f"b{n}", arrival=1 + n) for n in range(4)))
    queue.charge(("a",), 1000)
    assert served(queue) == ["b0", "b1", "a0", "b2", "b3"]


def test_a_key_that_rises_or_falls_is_noticed(queue: WaitingQueue) -> None:
    enqueue(queue, sequence("a0", "a", arrival=1.0), sequence("b0", "b", arrival=2.0))
    queue.charge(("a",), 10)
    assert first_name(queue) == "b0"
    enqueue(queue, sequence("a1", "a", priority=-1, arrival=3.0))
    assert first_name(queue) == "a1"


def test_lines_that_come_and_go_leave_no_entries_behind() -> None:
    heap = LineHeap(lambda line: (line.service,))
    stays = Line(("stays",), 1.0)
    heap.add(stays)
    for number in range(1000):
        line = Line((str(number),), 2.0)
        heap.add(line)
        heap.discard(line)
    assert heap.first() is stays
    assert len(heap._entries) < 50


@pytest.mark.parametrize("experts", [("a", "b"), ("b", "a")])
def test_equal_mixes_are_one_group(experts: tuple[str, str]) -> None:
    versions = tuple((ExpertVersion(name, Path(name), name, 1), 0.5) for name in experts)
    assert Sequence(Request("x", (1,)), versions, 0).group == ("a", "b")
