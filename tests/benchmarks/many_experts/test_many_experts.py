import argparse
from pathlib import Path

import pytest

from benchmarks.many_experts import __main__ as command
from benchmarks.many_experts.bundle import first_experts, write_many
from benchmarks.many_experts.load import Answer, Measured
from benchmarks.many_experts.report import line, row
from merge.bundle import Bundle
from serve.engine.scheduler import Scheduler
from tests.serve.conftest import random_expert, random_model, write_bundle


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder, model = tmp_path_factory.mktemp("many"), random_model()
    source = write_bundle(
        folder / "source", model, lambda digest: [random_expert(model, digest, name, seed=1) for name in "ab"]
    )
    return write_many(folder / "bundle", source.bundle, 7)


def test_copies_have_names_and_digests_of_their_own(many: Bundle) -> None:
    assert many.expert_names == tuple(f"e{number:05}" for number in range(7))
    assert len({card.digest for card in many.manifest.experts}) == 7
    part = first_experts(many, 3)
    assert part.expert_names == ("e00000", "e00001", "e00002")
    assert part.read_expert("e00002").name == "e00002"


def test_a_run_for_each_combination(many: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_prompts", lambda _: [(5, 6, 7), (8, 9)])
    plan = Scheduler.plan
    options = argparse.Namespace(
        experts=[2, 7], users=[3], popularity=["uniform", "zipf"], slots=2, tokens=3, requests=12, host_bytes=2**20
    )
    rows = list(command.run(many, options))
    assert [(one["experts"], one["users"], one["popularity"]) for one in rows] == [
        (2, 3, "uniform"),
        (2, 3, "zipf"),
        (7, 3, "uniform"),
        (7, 3, "zipf"),
    ]
    for one in rows:
        assert one["requests_per_s"] > 0
        assert 0 < one["planning_cpu_ms_per_step"] < one["engine_cpu_ms_per_step"]
        assert 0 < one["sequences_per_step"] <= 3
    assert rows[0]["loads_per_s"] == 0
    assert rows[2]["loads_per_s"] > 0
    assert Scheduler.plan is plan


def test_what_is_unfinished_counts_as_waiting() -> None:
    answers = [Answer(0, 1.0), Answer(0, 2.0), Answer(9, 3.0), Answer(9, 9.0)]
    found = Measured(2.0, 0.5, 0.1, answers, finished=2, steps=10, sequences=20, loads=4)
    figures = row(10, 2, "zipf", found)
    assert figures["requests_per_s"] == 1.0
    assert (figures["engine_cpu_ms_per_step"], figures["planning_cpu_ms_per_step"]) == (50.0, 10.0)
    assert figures["answer_popular_s"] == {"mean": 1.5, "p50": 1.5, "p99": 1.99}
    assert figures["answer_rare_s"] == {"mean": 6.0, "p50": 6.0, "p99": 8.94}
    assert "1.50, 1.99" in line(figures)
    assert line({**figures, "answer_rare_s": None}).endswith(" -")


def test_the_command_writes_as_many_experts_as_it_needs(
    many: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def write(path: Path, source: Bundle, number: int) -> Bundle:
        asked.append(number)
        return many

    monkeypatch.setattr(command, "zoo_bundle", lambda: many.path)
    monkeypatch.setattr(command, "write_many", write)
    monkeypatch.setattr(command, "_prompts", lambda _: [(5, 6, 7)])
    arguments = "many --experts 2 4 --users 2 --popularity zipf --requests 8 --tokens 2"
    monkeypatch.setattr("sys.argv", arguments.split())
    command.main()
    assert asked == [4]
    assert len(capsys.readouterr().out.splitlines()) == 3
