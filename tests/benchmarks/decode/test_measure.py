import pytest

from benchmarks.decode.cases import Case
from benchmarks.decode.measure import _Rows, measure
from benchmarks.decode.runs import Runs
from benchmarks.decode.timing import Timing
from benchmarks.peers import PeerError
from tests.benchmarks.decode.test_model import TINY


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a report has does not depend on how often it measures."""
    for name, few in (("STEPS", 20), ("TURNS", 2), ("PREFILL", 96)):
        monkeypatch.setattr(f"benchmarks.decode.measure.{name}", few)


def test_a_report_has_what_it_promises(tmp_path):
    said: list[str] = []
    report = measure(tmp_path, TINY, None, [], 2, said.append)
    assert report["density"] == 0.01
    assert set(report["backbone_ms"]) == set(report["one_expert"]) == {"1", "8"}
    assert set(report["distinct8"]) == {"8"}
    for key in ("floor_ms", "ttft_ms", "python_overhead_ms"):
        assert report[key] > 0, key
    assert set(report["prefill_tokens_per_s"]["overtone"]) == {"backbone", "one_expert", "mixed"}
    assert report["patching"]["switch_ms"] > 0
    assert set(report["patching"]["saved_ms"]) == {"1", "8", "64", "256"}
    assert set(report["backbone_vs_floor"]) == {"1", "8"}
    assert set(report["turns_ms"]) == {"floor", *report["steps_ms"]["overtone"]}
    assert said[-2:] == ["round 2 of 2", "the engine's own cases in turn"]


def test_contexts_up_to_the_longest(tmp_path):
    report = measure(tmp_path, TINY, 64, [], 1, lambda _: None)
    assert set(report["steps_ms"]["overtone"]) == {"backbone/1@64", "backbone/8@64", "distinct8/8@64"}


def test_low_rank_experts_and_sampled_tokens(tmp_path):
    report = measure(tmp_path, TINY, None, [], 1, lambda _: None, kind="low_rank8_int8", sampling=True)
    assert {"sampled/1", "sampled/8"} < set(report["steps_ms"]["overtone"])
    assert set(report["sampling"]["ratio"]) == set(report["sampling"]["added_ms"]) == {"1", "8"}
    assert report["experts"] == "low_rank8_int8"
    assert set(report["distinct8"]) == {"8"}
    assert not {"density", "storage", "patching"} & set(report)


# PEFT's own use of what transformers deprecates is not this project's to mend.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_loras_answer_as_peft_does(tmp_path):
    report = measure(tmp_path, TINY, None, [], 1, lambda _: None, kind="lora16")
    assert report["experts"] == "lora16"
    assert set(report["steps_ms"]["overtone"]) >= {"one_expert/8", "distinct8/8"}
    errors = report["logprob_errors"]
    assert 0 < errors["overtone"] < 3 * errors["peft"]


def test_peers_are_told_by_steps_of_the_same_round():
    runs = {
        name: lambda *_, step=step: Timing([[0.0, step, 2 * step]]) for name, step in (("overtone", 1), ("vllm", 5))
    }
    rows = _Rows(of(runs), lambda: 1.0)
    rows.measure(0, [Case("backbone/1", (None,), 4)], [])
    assert rows.context_report()["peer_ratio"] == {"vllm": {"backbone/1": 5.0}}


def test_a_peer_that_fails_is_left_out_with_its_error():
    def fail(case, tokens):
        if case.prompt == 8:
            raise PeerError("openvino ended with status -4")
        return Timing([[0.0, 1.0, 2.0]])

    rows = _Rows(of({"overtone": lambda *_: Timing([[0.0, 1.0, 2.0]]), "openvino": fail}), lambda: 1.0)
    for prompt in (4, 8, 4):
        rows.measure(0, [Case("backbone/1", (None,), prompt)], [])
    report = rows.context_report()
    assert report["left_out"] == {"openvino": "openvino ended with status -4"}
    assert set(report["steps_ms"]) == {"overtone"}
    assert "peer_ratio" not in report


def of(runs):
    all_of_them = Runs(lambda _: None)
    all_of_them.add(runs)
    return all_of_them
