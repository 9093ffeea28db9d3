"""The simulation of replicas and experts."""

import json
import math
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks.capacity import __main__ as command
from benchmarks.capacity.card import Card, card_of_decode
from benchmarks.capacity.fit import Phase, explain
from benchmarks.capacity.placement import PLACEMENTS
from benchmarks.capacity.simulate import Scenario, highest_rate, replay, simulate
from benchmarks.capacity.trace import trace
from serve.bench.workload import Arrivals, Lengths, Popularity, Workload

CARD = Card(10.0, 0.5, 2.0, 0.25, 0.1, expert_bytes=1e7, load_bytes_per_s=1e9, dollars_per_hour=2.0)
BASE = Scenario("random", replicas=2, experts=4, slots=4, rate=5.0, batch=8, prompt=10, output=8, seconds=30.0)
DECODE = {
    "steps_ms": {
        "overtone": {
            name: {"median": value}
            for name, value in {
                "backbone/1": 11.0,
                "backbone/8": 18.0,
                "one_expert/1": 13.0,
                "one_expert/8": 20.5,
                "distinct8/8": 24.0,
            }.items()
        }
    },
    "prefill_tokens_per_s": {"overtone": {"a": 400, "b": 500}},
    "density": 0.01,
    "storage": "bf16",
    "parameters": 1_000_000,
}


def test_a_card_of_measured_steps_gives_them_back():
    card = card_of_decode(DECODE, 1e9)
    assert card.step_seconds(1, 0, 0) == pytest.approx(0.011)
    assert card.step_seconds(8, 0, 0) == pytest.approx(0.018)
    assert card.step_seconds(8, 1, 0) == pytest.approx(0.0205)
    assert card.step_seconds(8, 8, 0) == pytest.approx(0.024)
    assert card.step_seconds(1, 0, 500) == pytest.approx(1.011)
    assert card.expert_bytes == 40_000
    assert card_of_decode(DECODE | {"storage": "int8"}, 1e9).expert_bytes == 30_000


def test_a_report_of_something_else_is_refused():
    with pytest.raises(ValueError, match="steps_ms"):
        card_of_decode({}, 1e9)


def test_closed_loops_give_back_the_card_that_they_ran_on():
    mixes = [(1, 0, 0), (4, 0, 0), (16, 0, 0), (16, 1, 1), (4, 1, 3), (16, 1, 8)]
    phases = []
    for prompts, users in ((0, 8), (20, 24)):
        for sequences, share, experts in mixes:
            step = 10 + 0.5 * sequences + 2 * share + 0.25 * experts + 0.1 * prompts
            phases.append(Phase(users, step, (1.0, sequences, share, experts, prompts), hop_ms=7 + 0.25 * users))
    loads = {"expert_load_seconds_count": 4.0, "expert_load_seconds_sum": 0.04, "expert_load_bytes_total": 4e7}
    found = explain(phases, loads)
    assert asdict(replace(found.card, dollars_per_hour=2.0)) == pytest.approx(asdict(CARD), rel=1e-6)
    assert (found.hop_ms, found.hop_request_ms) == (7.0, 0.25)
    assert max(map(abs, found.errors)) < 1e-6


def test_a_step_is_never_made_shorter_by_what_is_in_it():
    phases = [Phase(8, 10.0 - experts, (1.0, 4.0, 1.0, experts, 0.0), 0.0) for experts in (1.0, 2.0, 4.0)]
    loads = {"expert_load_seconds_count": 0.0, "expert_load_seconds_sum": 0.0, "expert_load_bytes_total": 0.0}
    card = explain(phases, loads).card
    assert min(card.base_ms, card.sequence_ms, card.first_expert_ms, card.expert_ms, card.prompt_ms) >= 0


def test_the_same_requests_come_to_the_simulation_as_to_the_replicas():
    lengths = Lengths(8, 8)
    workload = Workload(30, 5, Popularity("zipf"), lengths, lengths, seed=3)
    arrivals = Arrivals("poisson", rate=4.0)
    jobs = trace(workload, arrivals, ["a", "b", "c"])
    items = workload.items(["a", "b", "c"])[5:]
    assert ["abc"[job.expert] for job in jobs] == [item.expert for item in items]
    assert [job.arrival for job in jobs] == list(arrivals.times(30, workload.random()))
    replay(CARD, BASE, jobs, np.random.default_rng(0), math.inf)
    assert all(job.left == 0 and job.done >= job.first > job.arrival for job in jobs)
    for job in jobs:
        assert job.beside == sum(other.arrival <= job.arrival < other.done for other in jobs)


def test_one_request_takes_its_load_its_prompt_and_its_steps():
    row = simulate(CARD, replace(BASE, replicas=1, rate=0.02, seconds=400.0, geometric=False, experts=1, slots=1))
    step = CARD.step_seconds(1, 1, 0)
    assert row["ttft_s"]["p50"] == pytest.approx(CARD.step_seconds(1, 1, 10), abs=1e-5)
    assert row["tpot_s"]["p50"] == pytest.approx(step, abs=1e-5)
    assert row["loads_per_request"] == pytest.approx(1 / row["requests"], abs=1e-4)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_seed_repeats_and_work_is_conserved(placement):
    scenario = replace(BASE, placement=placement, experts=50)
    row = simulate(CARD, scenario)
    assert row == simulate(CARD, scenario)
    assert row != simulate(CARD, replace(scenario, seed=1))
    assert 0 < row["busy"] <= row["busiest"] <= 1 + CARD.step_seconds(8, 8, 80)
    assert row["unfinished"] <= row["requests"]


def test_affinity_moves_fewer_experts_than_chance():
    rows = {name: simulate(CARD, replace(BASE, placement=name, experts=16, slots=8, alpha=0.5)) for name in PLACEMENTS}
    assert rows["affinity"]["loads_per_s"] < rows["random"]["loads_per_s"]
    assert rows["replicated"]["loads_per_s"] < rows["random"]["loads_per_s"]


def test_an_expert_in_one_home_bears_no_more_than_one_replica():
    """All requests are for one expert: an affinity without replication leaves all but one replica idle."""
    one = replace(BASE, replicas=4, experts=1, slots=1, seconds=20.0)
    rates = {name: highest_rate(CARD, replace(one, placement=name)) for name in PLACEMENTS}
    assert rates["replicated"] > 2 * rates["affinity"]


def test_more_slots_move_fewer_experts():
    few, many = (simulate(CARD, replace(BASE, experts=40, slots=slots))["loads_per_s"] for slots in (8, 40))
    assert many < few


def test_the_cost_is_the_time_of_all_replicas():
    row = simulate(CARD, BASE)
    tokens = row["tokens_per_s"] * BASE.seconds
    assert row["replica_seconds_per_million_tokens"] == pytest.approx(2 * 30.0 / tokens * 1e6, rel=1e-3)
    assert row["dollars_per_million_tokens"] == pytest.approx(
        row["replica_seconds_per_million_tokens"] / 3600 * 2, rel=1e-2
    )


def test_the_command_prints_one_document(tmp_path, capsys, monkeypatch):
    steps = tmp_path / "steps.json"
    steps.write_text(json.dumps(DECODE))
    arguments = ["--json", "--steps", str(steps), "--experts", "4", "40", "--seconds", "4", "--replicas", "2"]
    monkeypatch.setattr(sys, "argv", ["capacity", *arguments, "--batch", "8", "--slots", "8"])
    command.main()
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["experts"], row["placement"]) for row in rows] == [(n, p) for n in (4, 40) for p in PLACEMENTS]
    assert all(row["highest_rate"] > 0 for row in rows)


def test_half_a_card_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["capacity", "--base-ms", "3"])
    with pytest.raises(SystemExit):
        command.main()
    assert "a card needs --sequence-ms" in capsys.readouterr().err
