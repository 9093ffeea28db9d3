"""What the ingress knows of experts and of replicas."""

import asyncio
from pathlib import Path

import pytest

from serve.cluster.board import Board
from serve.cluster.messages import Held, ReplicaState, Report
from serve.cluster.metrics import ClusterMetrics
from serve.cluster.registry import Registry
from serve.engine import EngineDead, EngineStats, UnknownExpert
from serve.experts import GenerationMismatch
from serve.metrics import Metrics
from tests.serve.conftest import TinyBundle

STATS = EngineStats(1, 2, 3, 4, 8, 100, 2, 10, 0, ("a", "b"), (), 2, 0)


def report(name: str, bundle: str = "new") -> Report:
    return Report(ReplicaState(name, bundle, STATS, 0.0, {"digest": Held(0, False, 5)}), [])


def test_names_have_versions_and_changes_have_generations(tiny: TinyBundle):
    registry = Registry(tiny.bundle)
    assert [version.name for version in registry.all()] == list("abcd")
    assert registry.get("a").digest == tiny.bundle.card("a").digest
    before = registry.get("b").generation
    registry.expect("b", before)
    registry.expect("new", 0)
    after = registry.set("b", Path("/other"), "other")
    assert after.generation > before
    with pytest.raises(GenerationMismatch, match=f"generation {after.generation}, not {before}"):
        registry.expect("b", before)
    assert registry.remove("b") == after
    with pytest.raises(UnknownExpert, match="there are: a, c, d"):
        registry.get("b")


async def test_replicas_of_another_bundle_do_not_count():
    reports = [report("one"), report("two"), report("old", bundle="old")]

    async def ask() -> list[Report]:
        return reports

    board = Board(ask, "new", patience=30.0)
    assert board.stats().running == 0
    await board.refresh()
    await board.first()
    assert [found.replica for found in board.states] == ["one", "two"]
    assert list(board.reports) == reports  # all of them are scraped
    total = board.stats()
    assert (total.running, total.expert_slots, total.experts_resident) == (2, 4, ("a", "b"))


async def test_a_board_goes_on_after_a_question_that_failed():
    answers = [RuntimeError("no connection"), [report("one")]]

    async def ask() -> list[Report]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    board = Board(ask, "new", patience=30.0)
    board.start()
    async with asyncio.timeout(10):
        await board.first()
    board.stop()
    assert [found.replica for found in board.states] == ["one"]


async def test_a_deployment_without_replicas_is_dead_once_patience_is_over():
    async def nobody() -> list[Report]:
        return []

    patient, impatient = (Board(nobody, "new", patience) for patience in (1000.0, -1.0))
    await patient.refresh()
    patient.health()
    with pytest.raises(EngineDead, match="no replica"):
        impatient.health()


async def test_one_exposition_tells_processes_apart():
    ingress, replica = ClusterMetrics("1"), Metrics()
    replica.engine.on_reject("QueueFull")
    ingress.router.observe("one", 0.01, 0.6, near_tie=True, session="kept")
    ingress.router.observe(None, 0.01, 0.6, abstention="unsure")

    async def replicas() -> list[tuple[str, list]]:
        return [("r1", replica.families())]

    ingress.join(replicas)
    body, content_type = await ingress.scrape()
    lines = body.decode().splitlines()
    assert content_type.startswith("text/plain")
    rejected = 'overtone_admission_rejections_total{reason="QueueFull",replica='
    assert f'{rejected}"r1"}} 1.0' in lines
    assert 'overtone_router_session_turns_total{outcome="kept",replica="ingress"} 1.0' in lines
    assert 'overtone_router_abstentions_total{reason="unsure",replica="ingress"} 1.0' in lines
    assert 'overtone_router_near_ties_total{replica="ingress"} 1.0' in lines
    assert sum(line == "# TYPE overtone_admission_rejections_total counter" for line in lines) == 1
