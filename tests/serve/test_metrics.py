import threading

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from serve.engine import EngineObserver, RequestRecord, StepRecord
from serve.metrics import CappedNames, Metrics
from serve.metrics.buckets import token_counts

STEP = StepRecord(
    seconds=0.004,
    tokens=40,
    prefill_tokens=32,
    decode_tokens=8,
    sequences=9,
    distinct_experts=3,
    mode="fused",
    running=9,
    waiting=4,
    kv_blocks_used=25,
    kv_blocks_total=100,
    prefix_query_tokens=64,
    prefix_hit_tokens=48,
    preemptions=1,
)


def record(**changes) -> RequestRecord:
    fields = {
        "request_id": "r",
        "experts": ("sql",),
        "prompt_tokens": 30,
        "cached_tokens": 16,
        "generated_tokens": 5,
        "finish_reason": "stop",
        "arrival": 10.0,
        "scheduled": 10.5,
        "first_token": 11.5,
        "finished": 15.5,
    }
    return RequestRecord(**{**fields, **changes})


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    text = metrics.render()[0].decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_engine_metrics_observe_the_engine():
    observer: EngineObserver = Metrics().engine
    observer.on_step(STEP)


def test_a_step():
    metrics = Metrics()
    metrics.engine.on_step(STEP)
    metrics.engine.on_step(STEP)
    found = samples(metrics)
    assert found["overtone_num_requests_running",] == 9
    assert found["overtone_num_requests_waiting",] == 4
    assert found["overtone_kv_cache_usage_perc",] == 0.25
    assert found["overtone_prefix_cache_queries_total",] == 128
    assert found["overtone_prefix_cache_hits_total",] == 96
    assert found["overtone_num_preemptions_total",] == 2
    assert found["overtone_steps_total", "fused"] == 2
    assert found["overtone_step_seconds_sum",] == pytest.approx(0.008)
    assert found["overtone_iteration_tokens_total_sum",] == 80
    assert found["overtone_iteration_experts_sum",] == 6


def test_a_finished_request_by_its_intervals():
    metrics = Metrics()
    metrics.engine.on_finish(record())
    found = samples(metrics)
    for name, value in {
        "request_queue_time_seconds": 0.5,
        "request_prefill_time_seconds": 1.0,
        "request_decode_time_seconds": 4.0,
        "e2e_request_latency_seconds": 5.5,
        "request_time_per_output_token_seconds": 1.0,
        "request_prompt_tokens": 30,
        "request_generation_tokens": 5,
    }.items():
        assert (found[f"overtone_{name}_sum",], found[f"overtone_{name}_count",]) == (value, 1)
    assert found["overtone_prompt_tokens_total",] == 30
    assert found["overtone_prompt_tokens_cached_total",] == 16
    assert found["overtone_expert_requests_total", "sql"] == 1
    assert found["overtone_expert_generation_tokens_total", "sql"] == 5


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({"scheduled": None, "first_token": None, "generated_tokens": 0}, (0, 0, 0)),
        ({"first_token": None, "generated_tokens": 0}, (1, 0, 0)),
        ({"generated_tokens": 1}, (1, 1, 0)),
    ],
)
def test_intervals_that_did_not_happen_are_left_out(changes, counted):
    metrics = Metrics()
    metrics.engine.on_finish(record(**changes))
    found = samples(metrics)
    names = ("request_queue_time", "request_decode_time", "request_time_per_output_token")
    assert tuple(found[f"overtone_{name}_seconds_count",] for name in names) == counted


def test_requests_without_an_expert_are_the_backbones():
    metrics = Metrics()
    metrics.engine.on_finish(record(experts=()))
    assert samples(metrics)["overtone_expert_requests_total", "backbone"] == 1


def test_loads_evictions_and_residency():
    metrics = Metrics()
    for tier in ("host", "device"):
        metrics.engine.on_expert_load("sql", 0.002, 1000, tier)
    metrics.engine.on_expert_evict("sql", "device")
    found = samples(metrics)
    assert found["overtone_expert_loads_total", "device", "sql"] == 1
    assert found["overtone_expert_evictions_total", "device", "sql"] == 1
    assert found["overtone_expert_resident", "device", "sql"] == 0
    assert found["overtone_expert_resident", "host", "sql"] == 1
    assert found["overtone_expert_load_bytes_total", "host"] == 1000


def test_rejections_by_reason():
    metrics = Metrics()
    metrics.engine.on_reject("QueueFull")
    assert samples(metrics)["overtone_admission_rejections_total", "QueueFull"] == 1


def test_a_thousand_experts_do_not_make_the_scrape_long():
    metrics = Metrics(expert_labels=20)
    for number in range(1000):
        name = f"expert-{number}"
        metrics.engine.on_expert_load(name, 0.001, 10, "device")
        metrics.engine.on_finish(record(experts=(name,)))
        metrics.router.observe(name, 0.0005)
    found = samples(metrics)
    for name, labels in (
        ("overtone_expert_requests_total", ()),
        ("overtone_router_decisions_total", ()),
        ("overtone_expert_resident", ("device",)),
    ):
        assert len([key for key in found if key[0] == name]) == 21
        assert found[(name, *labels, "other")] == 980
    few = Metrics(expert_labels=20)
    for number in range(21):
        few.engine.on_expert_load(f"expert-{number}", 0.001, 10, "device")
        few.engine.on_finish(record(experts=(f"expert-{number}",)))
        few.router.observe(f"expert-{number}", 0.0005)
    assert len(found) == len(samples(few))
    assert len(metrics.render()[0]) < 100_000


def test_no_histogram_is_split_by_expert():
    metrics = Metrics()
    metrics.engine.on_expert_load("sql", 0.001, 10, "device")
    metrics.engine.on_finish(record())
    for family in text_string_to_metric_families(metrics.render()[0].decode()):
        assert family.type != "histogram" or not any("expert" in sample.labels for sample in family.samples)


def test_names_have_the_prefix_and_no_colon():
    metrics = Metrics()
    metrics.engine.on_step(STEP)
    for family in metrics.registry.collect():
        assert family.name.startswith(("overtone_", "process_"))
        assert ":" not in family.name


def test_nothing_is_on_the_global_registry():
    Metrics()
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("overtone")]


def test_buckets_reach_down_to_half_a_millisecond():
    found = samples(Metrics())
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "step"):
        assert (f"overtone_{name}_seconds_bucket", "0.0005") in found


def test_token_counts():
    assert token_counts(30) == (1, 2, 5, 10, 20)
    assert token_counts(1) == (1,)


def test_a_label_never_changes():
    names = CappedNames(2)
    assert [names.label(name) for name in "abcabc"] == ["a", "b", "other", "a", "b", "other"]


def test_the_cap_holds_among_threads():
    names = CappedNames(10)
    labels: set[str] = set()

    def count(thread: int) -> None:
        labels.update(names.label(f"{thread}-{number}") for number in range(500))

    threads = [threading.Thread(target=count, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(labels) == 11
