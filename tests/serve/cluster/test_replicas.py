"""Replicas that are full, ill or dead, around fake engines."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.serve.cluster.deployed import engines, samples, wait_for

if TYPE_CHECKING:
    from tests.serve.cluster.fakes import RemoteEngine

BODY = {"model": "sql", "prompt": "hi"}


@pytest.fixture
def replicas(fake_replicas: "tuple[RemoteEngine, str]") -> "Iterator[tuple[RemoteEngine, str]]":
    """Two healthy replicas; those that are not healthy any more are replaced."""
    fake_replicas[0].reset()
    yield fake_replicas
    wait_for(lambda: len(engines(fake_replicas[1])) == 2, "the replicas did not come back")
    fake_replicas[0].reset()


def damage(engine: "RemoteEngine", victim: str) -> None:
    """Let one replica's engine die."""

    def die(one) -> None:
        if one.name == victim:
            one.dead = "its loop ended"

    engine.watched = True
    engine.tell(die)


def test_full_replicas_still_say_how_they_are(replicas: "tuple[RemoteEngine, str]"):
    """Ray Serve's own calls wait for room at a replica, which may come after minutes."""
    engine, url = replicas
    engine.delay = 1000
    with contextlib.ExitStack() as stack:
        http = stack.enter_context(httpx.Client(base_url=url, timeout=30))
        for _ in range(2):
            stack.enter_context(http.stream("POST", "/v1/completions", json={**BODY, "n": 64, "stream": True}))
        wait_for(lambda: sum(samples(url)["overtone_num_requests_running",].values()) == 2 * 64, "they are not full")
        assert len(engines(url)) == 2
        assert httpx.get(f"{url}/health").status_code == 200
    wait_for(lambda: not sum(samples(url)["overtone_num_requests_running",].values()), "leaving did not abort them")


def test_a_replica_that_is_not_healthy_is_replaced(replicas: "tuple[RemoteEngine, str]"):
    engine, url = replicas
    before = engines(url)
    victim = min(before)
    damage(engine, victim)
    wait_for(lambda: len(engines(url) - before) == 1, "it was not replaced")
    assert before - engines(url) == {victim}


def test_a_dead_engine_costs_no_request(replicas: "tuple[RemoteEngine, str]"):
    """One that refuses at once must not draw all requests until its health is asked after."""
    engine, url = replicas
    before = engines(url)
    with httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(8) as pool:
        damage(engine, max(before))
        replies = list(pool.map(lambda _: http.post("/v1/completions", json=BODY), range(60)))
    assert {reply.status_code for reply in replies} == {200}
    wait_for(lambda: len(engines(url) - before) == 1, "it was not replaced")
