"""Progress, bounded waits, fair shares and the work of planning, counted in steps and operations."""

import random
from collections.abc import Callable
from itertools import count
from statistics import mean

import pytest

from serve.engine.lines import Line
from serve.engine.sequence import Sequence
from tests.serve.engine.scheduling import Bench


def closed_loop(bench: Bench, users: dict[str, Callable[[], str]], steps: int, tokens: int = 8) -> dict[str, list[int]]:
    """Let every user ask for an expert, wait for the answer, and ask again.

    Returns:
        Expert → steps from each of its requests to the first token, those still waiting at the end included.
    """
    numbers = count()
    asked: dict[str, tuple[str, str]] = {}
    waits: dict[str, list[int]] = {}
    for _ in range(steps):
        for user, choose in users.items():
            if user not in asked or asked[user][0] in bench.ended:
                if user in asked:
                    name, expert = asked[user]
                    waits.setdefault(expert, []).append(bench.began[name] - bench.added[name])
                asked[user] = name, expert = f"{user}-{next(numbers)}", choose()
                bench.add(name, (expert,), tokens=tokens)
        bench.run()
    for name, expert in asked.values():
        waits.setdefault(expert, []).append(bench.began.get(name, bench.step) - bench.added[name])
    return waits


def newcomers(number: int) -> dict[str, Callable[[], str]]:
    """Users who never ask for an expert twice."""
    fresh = count()
    return {f"new{user}": lambda: f"fresh{next(fresh)}" for user in range(number)}


def zipf(experts: int, users: int, seed: int = 0) -> dict[str, Callable[[], str]]:
    """Users who ask for expert `e0` most and for each following one less."""
    names, weights = [f"e{n}" for n in range(experts)], [1 / (1 + n) for n in range(experts)]
    draws = random.Random(seed)
    return {f"user{user}": lambda: draws.choices(names, weights)[0] for user in range(users)}


def test_preempted_sequences_do_not_keep_their_slots() -> None:
    """Two preempted sequences of one expert and one of another, with one slot: the slot changes hands."""
    bench = Bench(slots=1, seqs=8, blocks=160)
    bench.add("plain", (), prompt=16, tokens=600)
    for number in range(3):
        bench.add(f"a{number}", ("a",), prompt=16, tokens=300)
    preempted: list[Sequence] = []
    while len(preempted) < 2 or any(sequence.group for sequence in bench.scheduler.running):
        bench.run()
        preempted = list(bench.scheduler.waiting)
    bench.add("b", ("b",), prompt=16, tokens=20)
    bench.run_until("plain", "a0", "a1", "a2", "b")
    assert (bench.pool.used, bench.store.pins) == (0, 0)


@pytest.mark.parametrize("seed", range(12))
def test_progress_bounded_waits_and_nothing_left_behind(seed: int) -> None:
    """Random mixes, priorities, aborts, unloads and failing loads, with few slots, seats and blocks."""
    draws = random.Random(seed)
    slots, seqs, longest, load_steps = draws.randint(1, 4), draws.randint(1, 6), 24, 3
    bench = Bench(slots, seqs, 16, blocks=draws.randint(6, 20), load_steps=lambda: draws.randint(0, load_steps))
    with_priorities = seed % 3 == 0
    experts = [f"e{n}" for n in range(draws.randint(2, 12))]
    numbers, idle, most_waiting = count(), 0, 40
    for _ in range(1500):
        if len(bench.unfinished) < most_waiting and draws.random() < 0.7:
            mix = draws.sample(experts, min(draws.choice([0, 1, 1, 1, 1, 2, 3]), slots, len(experts)))
            prompt = draws.randint(1, 12)
            tokens = draws.randint(1, longest - prompt)
            priority = draws.choice([-1, 0, 0, 0, 1]) if with_priorities else 0
            bench.add(f"r{next(numbers)}", mix, prompt, tokens, priority)
        if bench.unfinished and draws.random() < 0.05:
            bench.abort(draws.choice(list(bench.unfinished)))
        if draws.random() < 0.1:
            bench.store.evict(draws.choice(experts))
        if draws.random() < 0.02:
            bench.store.broken ^= {draws.choice(experts)}
        plan = bench.run()
        idle = 0 if plan.chunks or plan.failed or plan.preemptions or not bench.unfinished else idle + 1
        assert idle <= load_steps + 2
    if not with_priorities:
        # Everyone in front and everyone who may pass, were they served one after the other, twice each.
        bound = 2 * (most_waiting + (slots + 1) * seqs) * (longest + load_steps)
        waits = [bench.began[name] - bench.added[name] for name in bench.began]
        waits += [bench.step - bench.added[name] for name in bench.unfinished if name not in bench.began]
        assert max(waits) <= bound
    for _ in range(5000):
        bench.run()
        if not bench.unfinished:
            break
    assert not bench.unfinished
    assert (bench.pool.used, bench.store.pins) == (0, 0)
    assert (len(bench.scheduler.waiting), bench.scheduler.waiting.tokens, bench.scheduler.running) == (0, 0, [])


@pytest.mark.parametrize(("slots", "seqs"), [(2, 8), (4, 8), (1, 4)])
@pytest.mark.parametrize("users", [8, 64])
def test_an_established_expert_is_served_while_newcomers_keep_coming(slots: int, seqs: int, users: int) -> None:
    bench = Bench(slots, seqs, load_steps=lambda: 1)
    others = newcomers(users)
    waits = closed_loop(bench, {"a": lambda: "old", "b": lambda: "old", **others}, 2000)
    old = waits.pop("old")
    new = [wait for expert in waits.values() for wait in expert]
    # First come, first served, everyone waits for the others' turns at the slots, a load and eight tokens each.
    assert max(old) <= (users + 2 + seqs) * 12 / slots
    assert mean(old) <= mean(new)


@pytest.mark.parametrize("users", [16, 64])
def test_an_established_expert_keeps_its_share_of_the_seats(users: int) -> None:
    """With slots for all, newcomers compete for seats alone."""
    bench = Bench(slots=128, seqs=4)
    waits = closed_loop(bench, {"a": lambda: "old", "b": lambda: "old", **newcomers(users)}, 2000)
    old = waits.pop("old")
    new = [wait for expert in waits.values() for wait in expert]
    assert mean(old) <= 1.1 * mean(new)
    assert max(old) <= (users + 2 + 4) * 9 / 4


@pytest.mark.parametrize(("slots", "users"), [(4, 48), (8, 48), (16, 200), (64, 200)])
def test_popular_experts_are_not_slower_than_rare_ones(slots: int, users: int) -> None:
    bench = Bench(slots, seqs=16, load_steps=lambda: 2)
    waits = closed_loop(bench, zipf(200, users), 2000)
    popular = [wait for rank in range(5) for wait in waits[f"e{rank}"]]
    rare = [wait for rank in range(100, 200) for wait in waits.get(f"e{rank}", ())]
    assert mean(popular) <= mean(rare)


def test_a_newcomer_does_not_wait_for_a_backlog() -> None:
    bench = Bench(slots=2, seqs=4)
    for number in range(100):
        bench.add(f"flood{number}", ("a",))
    for _ in range(20):
        bench.run()
    bench.add("late", ("b",))
    bench.run_until("late")
    assert bench.ended["late"] - bench.added["late"] <= 20
    assert len(bench.scheduler.waiting) > 50


def test_nobody_is_passed_by_more_than_a_batch_of_later_ones() -> None:
    """A long request waits in proportion to its tokens, and later requests for other experts cannot prolong that."""
    bench = Bench(slots=256, seqs=2)
    bench.add("long", ("a",), tokens=300)
    bench.add("fill", ("b",), tokens=300)
    bench.run_until("long", "fill")
    for number in range(10):
        bench.add(f"before{number}", (f"x{number}",))
    bench.add("again", ("a",))
    for number in range(100):
        bench.add(f"after{number}", (f"y{number}",))
    bench.run_until("again")
    assert sum(name.startswith("after") for name in bench.began) <= 2


def test_a_mix_gets_its_slots_although_single_experts_keep_coming() -> None:
    bench = Bench(slots=3, seqs=6)
    users: dict[str, Callable[[], str]] = {f"u{n}": lambda n=n: f"e{n % 5}" for n in range(10)}  # type: ignore[misc]
    closed_loop(bench, users, 50)
    bench.add("mix", ("m0", "m1", "m2"))
    closed_loop(bench, {f"v{user}": choose for user, choose in users.items()}, 200)
    assert bench.began["mix"] - bench.added["mix"] <= 100


def test_a_resident_expert_is_not_held_behind_one_that_is_not() -> None:
    bench = Bench(slots=1, seqs=4)
    bench.add("runs", ("a",), tokens=50)
    bench.run()
    bench.add("blocked", ("b",))
    bench.add("resident", ("a",))
    bench.run()
    assert bench.began == {"runs": 0, "resident": 1}
    bench.run_until("blocked")


def test_a_failing_load_ends_what_waits_for_it_with_one_load() -> None:
    bench = Bench(slots=1, seqs=4, load_steps=lambda: 2)
    bench.store.broken = {"bad"}
    for number in range(5):
        bench.add(f"bad{number}", ("bad",))
    bench.add("good", ("good",))
    bench.run_until("good")
    assert bench.failed == {f"bad{number}" for number in range(5)}
    assert bench.store.loads == ["bad", "good"]


def test_what_waits_when_slots_are_granted_shares_the_load() -> None:
    """Although others insist on the slots, an expert is loaded once for all who wait for it."""
    bench = Bench(slots=1, seqs=4)
    for number in range(40):
        bench.add(f"r{number}", (f"e{number % 10}",))
    bench.run_until(*(f"r{number}" for number in range(40)))
    assert len(bench.store.loads) == 10


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a line was looked at, in a list of one number."""
    counted = [0]

    def counting(name: str) -> property:
        original = getattr(Line, name)
        assert isinstance(original, property)

        def read(line: Line) -> object:
            counted[0] += 1
            assert original.fget is not None
            return original.fget(line)

        return property(read)

    for name in ("turn", "age"):
        monkeypatch.setattr(Line, name, counting(name))
    return counted


def planning_looks(looks: list[int], slots: int, lines: int) -> float:
    """The number of lines inspected for each admission, while a constant number of lines waits."""
    bench = Bench(slots, seqs=8)
    for number in range(lines):
        bench.add(f"r{number}", (f"e{number}",))
    for _ in range(100):
        bench.run()
    looks[0], before = 0, len(bench.began)
    for _ in range(300):
        bench.run()
    admitted = len(bench.began) - before
    assert admitted > 50
    assert len(bench.scheduler.waiting) > lines / 2
    return looks[0] / admitted


@pytest.mark.parametrize("slots", [4, 8, 16])
def test_planning_does_not_look_at_all_that_waits(looks: list[int], slots: int) -> None:
    few, many = planning_looks(looks, slots, 1000), planning_looks(looks, slots, 8000)
    assert many <= 1.5 * few
    assert many <= 40 * 3
