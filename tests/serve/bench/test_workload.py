import numpy as np
import pytest

from serve.bench.workload import Arrivals, Lengths, Popularity, Workload, WorkloadError

EXPERTS = ["a", "b", "c", "d"]


def draw(text: str, count: int = 4000) -> list[str | None]:
    return Popularity.parse(text).draw(EXPERTS, count, np.random.default_rng(0))


def test_popularities():
    assert draw("backbone", 2) == [None, None]
    assert draw("identical", 2) == ["a", "a"]
    assert draw("distinct", 6) == ["a", "b", "c", "d", "a", "b"]
    shares = [draw("uniform").count(name) / 4000 for name in EXPERTS]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_zipf_follows_its_exponent():
    found = draw("zipf:2")
    weights = [1, 1 / 4, 1 / 9, 1 / 16]
    assert [found.count(name) / 4000 for name in EXPERTS] == pytest.approx(
        [w / sum(weights) for w in weights], abs=0.03
    )


@pytest.mark.parametrize("text", ["", "popular", "zipf:x", "zipf:-1", "uniform:2"])
def test_other_popularities_are_refused(text):
    with pytest.raises(WorkloadError, match="is not backbone, identical"):
        Popularity.parse(text)


def test_experts_are_needed_but_for_the_backbone():
    with pytest.raises(WorkloadError, match="uniform needs experts"):
        Popularity("uniform").draw([], 1, np.random.default_rng(0))


def test_lengths():
    assert Lengths.parse("7") == Lengths.parse("7-7") == Lengths(7, 7)
    drawn = Lengths.parse("3-5").draw(200, np.random.default_rng(0))
    assert set(drawn) == {3, 4, 5}


@pytest.mark.parametrize("text", ["0", "5-3", "a", "-3", "1.5"])
def test_other_lengths_are_refused(text):
    with pytest.raises(WorkloadError, match="neither a number of tokens"):
        Lengths.parse(text)


def test_arrivals():
    random = np.random.default_rng(0)
    assert list(Arrivals("constant", rate=4).times(3, random)) == [0, 0.25, 0.5]
    times = list(Arrivals("poisson", rate=10).times(5000, random))
    assert times == sorted(times)
    assert times[-1] / 5000 == pytest.approx(0.1, rel=0.05)


def test_a_seed_determines_everything():
    def workload(seed: int) -> Workload:
        return Workload(20, 3, Popularity("uniform"), Lengths(4, 9), Lengths(1, 5), seed)

    items = workload(1).items(EXPERTS)
    assert items == workload(1).items(EXPERTS)
    assert items != workload(2).items(EXPERTS)
    assert len(items) == 23
    assert {len(item.prompt) for item in items} == {4, 5, 6, 7, 8, 9}


def test_given_prompts_are_asked_in_turn():
    workload = Workload(3, 0, Popularity("backbone"), Lengths(1, 1), Lengths(1, 1), prompts=("x", "y"))
    assert [item.prompt for item in workload.items([])] == ["x", "y", "x"]
