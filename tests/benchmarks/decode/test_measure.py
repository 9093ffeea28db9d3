from benchmarks.decode.measure import measure
from tests.benchmarks.decode.test_model import TINY


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
