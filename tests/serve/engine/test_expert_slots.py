"""Requests for more experts than there are slots."""

import time

import pytest

from serve.engine import Engine, InvalidRequest, Request
from tests.serve.conftest import TinyBundle, drain, engine_of, greedy, run_alone, tokens_of
from tests.serve.engine.asked import MIXES, prompt


@pytest.mark.promise(number=7)
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_more_experts_than_slots(tiny: TinyBundle, slots: int) -> None:
    engine = engine_of(tiny.bundle, max_expert_slots=slots).engine
    wanted = [Request(f"r{i}", prompt(i, 6), greedy(5), MIXES[1 + i % 4]) for i in range(12)]
    for request in wanted:
        engine.add(request)
    outputs = drain(engine)
    for request in wanted:
        assert tokens_of(outputs[request.request_id]) == tiny.greedy(request.prompt, 5, *request.experts)


@pytest.mark.promise(number=7)
def test_a_mix_of_more_experts_than_slots_is_refused(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle, max_expert_slots=1).engine
    with pytest.raises(InvalidRequest, match="mixes 2; at most 1"):
        engine.add(Request("x", (5,), greedy(1), (("a", 0.5), ("b", 0.5))))


@pytest.mark.promise(number=7)
def test_the_least_recently_used_expert_leaves(tiny: TinyBundle) -> None:
    engine = engine_of(tiny.bundle, max_expert_slots=2).engine
    for number, name in enumerate("abac"):
        run_alone(engine, Request(f"r{number}", prompt(1, 5), greedy(2), ((name, 1.0),)))
    assert engine.stats().experts_resident == ("a", "c")


@pytest.mark.promise(number=7)
def test_a_flood_for_one_expert_does_not_starve_another(tiny: TinyBundle) -> None:
    """With one slot, held by a flood that never ends, a late request for another expert is served all the same."""
    engine = engine_of(tiny.bundle, max_expert_slots=1, max_num_seqs=2).engine
    number = 0

    def flood() -> None:
        nonlocal number
        engine.add(Request(f"flood{number}", prompt(number, 10), greedy(4), (("a", 1.0),)))
        number += 1

    for _ in range(20):
        flood()
    for _ in range(3):
        engine.step()
    engine.add(Request("late", prompt(1, 5), greedy(2), (("b", 1.0),)))
    late: list[int] = []
    for _ in range(400):
        for output in engine.step():
            if output.request_id == "late":
                late += tokens_of([output])
            elif output.finish_reason is not None:
                flood()
        if len(late) == 2:
            break
        if engine.idle:
            time.sleep(0.002)
    assert late == tiny.greedy(prompt(1, 5), 2, ("b", 1.0))


@pytest.mark.promise(number=7)
def test_experts_share_the_seats_fairly(tiny: TinyBundle) -> None:
    """Twenty requests for one expert that came first do not keep one for another waiting until they are done."""
    engine = engine_of(tiny.bundle, max_num_seqs=2).engine
    run_alone(engine, Request("loads b", prompt(0, 5), greedy(1), (("b", 1.0),)))
    for number in range(20):
        engine.add(Request(f"flood{number}", prompt(number, 8), greedy(3), (("a", 1.0),)))
    engine.add(Request("other", prompt(1, 5), greedy(3), (("b", 1.0),)))
    finished = [name for name, outputs in _in_order(engine) if outputs]
    assert finished.index("other") <= 3


def _in_order(engine: Engine) -> list[tuple[str, bool]]:
    """Names in the order in which their requests finished."""
    order = []
    while engine.has_work:
        order += [(output.request_id, True) for output in engine.step() if output.finish_reason is not None]
        if engine.idle:
            time.sleep(0.002)
    return order
