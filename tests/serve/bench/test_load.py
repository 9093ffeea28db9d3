import asyncio
from collections.abc import Iterator

import pytest

from serve.bench.client import ask
from serve.bench.load import run
from serve.bench.summary import Slo, summarise
from serve.bench.sweep import floor, over_arrivals, over_experts, tax
from serve.bench.target import Target, discover
from serve.bench.workload import Arrivals, Item, Lengths, Popularity, Workload, WorkloadError
from tests.serve.api.fakes import FakeEngine, fake_service, live


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(fake_service(FakeEngine())) as url:
        yield url


@pytest.fixture
def target(url: str) -> Target:
    return asyncio.run(discover(url))


def workload(popularity: Popularity, count: int = 6) -> Workload:
    return Workload(count, 2, popularity, Lengths(3, 5), Lengths(4, 4), vocabulary=250)


def test_synthetic_prompts_have_no_special_tokens_of_low_ids() -> None:
    prompts = [item.prompt for item in workload(Popularity("distinct"), 200).items(["sql", "poetry"])]
    tokens = {token for prompt in prompts for token in prompt}
    assert (min(tokens), max(tokens)) == (250 // 4, 249)


def say(text: str) -> None:
    assert text


def test_the_models_are_discovered(target: Target):
    assert target.backbone == "backbone"
    assert set(target.experts) == {"sql", "poetry"}


def test_names_can_be_given_or_made(url: str):
    made = asyncio.run(discover(url, template="lora-{expert}"))
    assert made.experts["sql"] == "lora-sql"
    unreachable = asyncio.run(discover("http://127.0.0.1:1", experts=("x",), backbone="b"))
    assert (unreachable.backbone, unreachable.experts) == ("b", {"x": "x"})
    with pytest.raises(WorkloadError, match=r"127\.0\.0\.1:1/v1/models does not list models: ConnectError"):
        asyncio.run(discover("http://127.0.0.1:1"))


@pytest.mark.parametrize("arrivals", [Arrivals("closed", users=3), Arrivals("constant", rate=200.0)])
def test_all_requests_are_answered_for_the_experts_they_asked_for(target: Target, arrivals: Arrivals):
    told: list[None] = []
    answers = asyncio.run(run(target, workload(Popularity("distinct")), arrivals, lambda: told.append(None)))
    assert [answer.error for answer in answers] == [None] * 6
    assert [answer.expert for answer in answers] == list(target.experts) * 3
    assert len(told) == 6
    for answer in answers:
        assert answer.sent <= answer.pieces[0] <= answer.pieces[-1] <= answer.ended
        assert answer.tokens == 4


def test_an_error_is_an_answer(url: str):
    wrong = Target(url, "no-such-model")

    async def one() -> str | None:
        async with wrong.client() as client:
            return (await ask(wrong, client, Item(None, "x", 3))).error

    error = asyncio.run(one())
    assert error is not None
    assert error.startswith("404: ")
    assert "no-such-model" in error


def test_a_server_that_is_not_there_is_an_answer():
    gone = Target("http://127.0.0.1:1", "m")
    answers = asyncio.run(run(gone, workload(Popularity("backbone"), 2), Arrivals("closed", users=1)))
    assert summarise(answers).failed == 2
    assert answers[0].error is not None
    assert answers[0].error.startswith("ConnectError")


def test_sweeps(target: Target):
    users = [Arrivals("closed", users=n) for n in (1, 2)]
    runs = over_arrivals(target, workload(Popularity("uniform")), users, Slo(), say)
    assert [run.as_json()["users"] for run in runs] == [1, 2]
    runs = over_experts(target, workload(Popularity("uniform")), users[0], [0, 1, 2], 2, Slo(), say)
    assert [run.distinct for run in runs] == [0, 1, 2] * 2
    assert [len(run.summary.experts) for run in runs] == [1, 1, 2] * 2
    assert set(tax(runs)) == {0, 1, 2}
    assert tax(runs)[0] == 1.0
    with pytest.raises(WorkloadError, match="3 experts are asked for, and the server names 2"):
        over_experts(target, workload(Popularity("uniform")), users[0], [0, 3], 1, Slo(), say)


def test_the_floor_is_bytes():
    assert floor(0, 0.01) == 1
    assert floor(8, 0.01) == pytest.approx(1.16)
