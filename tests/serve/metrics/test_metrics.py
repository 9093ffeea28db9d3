import dataclasses
import threading
import time
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY, disable_created_metrics, enable_created_metrics
from prometheus_client.parser import text_string_to_metric_families

from serve.engine import EngineStats, RequestRecord, StepRecord
from serve.metrics import CappedNames, Metrics
from serve.metrics.labels import token_counts
from serve.metrics.metrics import EXPERT_LABELS

SCRAPE_BYTES = 150_000
"""What docs/operations.md promises of /metrics, however many experts are served."""

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

STATS = EngineStats(
    running=9,
    waiting=4,
    waiting_tokens=300,
    kv_blocks_used=25,
    kv_blocks_total=100,
    kv_cache_bytes=4096,
    expert_slots=64,
    expert_device_bytes=2048,
    expert_host_bytes=1024,
    experts_resident=("sql",),
    experts_on_host=("sql", "poetry"),
    contents_resident=1,
    contents_on_host=2,
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


def test_a_prompt_counts_once_however_many_continuations_it_has():
    metrics = Metrics()
    metrics.engine.on_finish(record())
    for _ in range(2):
        metrics.engine.on_finish(record(prompt_counts=False, cached_tokens=30))
    found = samples(metrics)
    assert found["overtone_prompt_tokens_total",] == 30
    assert found["overtone_prompt_tokens_cached_total",] == 16
    assert found["overtone_request_prompt_tokens_count",] == 1
    assert found["overtone_request_generation_tokens_count",] == 3


def test_a_step():
    metrics = Metrics()
    metrics.engine.on_step(STEP)
    metrics.engine.on_step(STEP)
    found = samples(metrics)
    assert found["overtone_prefix_cache_queries_total",] == 128
    assert found["overtone_prefix_cache_hits_total",] == 96
    assert found["overtone_num_preemptions_total",] == 2
    assert found["overtone_steps_total", "fused"] == 2
    assert found["overtone_step_seconds_sum",] == pytest.approx(0.008)
    assert found["overtone_computed_tokens_total", "prefill"] == 64
    assert found["overtone_computed_tokens_total", "decode"] == 16
    assert found["overtone_iteration_tokens_sum",] == 80
    assert found["overtone_iteration_sequences_sum",] == 18
    assert found["overtone_iteration_experts_sum",] == 6


def test_the_engine_at_the_moment_of_the_scrape():
    metrics = Metrics()
    metrics.watch(lambda: STATS)
    found = samples(metrics)
    assert found["overtone_num_requests_running",] == 9
    assert found["overtone_num_requests_waiting",] == 4
    assert found["overtone_num_tokens_waiting",] == 300
    assert found["overtone_kv_cache_usage_perc",] == 0.25
    assert found["overtone_kv_cache_blocks",] == 100
    assert found["overtone_kv_cache_bytes",] == 4096
    assert found["overtone_expert_slots",] == 64
    assert found["overtone_expert_tier_bytes", "device"] == 2048
    assert found["overtone_experts_resident", "host"] == 2
    assert found["overtone_expert_resident", "device", "sql"] == 1
    metrics.watch(lambda: dataclasses.replace(STATS, experts_resident=()))
    found = samples(metrics)
    assert found["overtone_expert_resident", "device", "sql"] == 0
    assert found["overtone_expert_resident", "host", "sql"] == 1


def affinity(metrics: Metrics) -> dict[str, str]:
    """The labels of the one series for balancers."""
    (family,) = (family for family in metrics.families() if family.name == "overtone_lora_requests_info")
    ((_, labels, value, *_),) = family.samples
    assert abs(value - time.time()) < 3600
    return dict(labels)


def test_which_experts_are_there_and_which_are_awaited_for_balancers_that_ask_vllm():
    metrics = Metrics()
    metrics.watch(lambda: STATS)
    assert affinity(metrics) == {
        "max_lora": "64",
        "running_lora_adapters": "sql",
        "waiting_lora_adapters": "",
    }
    for experts in (("sql",), ("poetry", "law"), ("poetry",), ()):
        metrics.http.admitted(experts)
    metrics.http.finished("stop", ("poetry",))
    assert affinity(metrics)["waiting_lora_adapters"] == "law,poetry"
    metrics.watch(lambda: dataclasses.replace(STATS, experts_resident=("sql", "poetry")))
    assert affinity(metrics)["running_lora_adapters"] == "poetry,sql"
    assert affinity(metrics)["waiting_lora_adapters"] == "law"
    metrics.http.finished("abort", ("poetry", "law"))
    assert affinity(metrics)["waiting_lora_adapters"] == ""


def test_the_phase_is_one_of_all():
    text = Metrics().render(phase="draining")[0].decode()
    assert 'overtone_phase{phase="draining"} 1.0' in text
    assert text.count("overtone_phase{") == 4
    assert 'overtone_phase{phase="ready"} 0.0' in text


def test_series_with_known_labels_begin_at_zero():
    found = samples(Metrics())
    for key in (
        ("overtone_steps_total", "patched"),
        ("overtone_admission_rejections_total", "QueueFull"),
        ("overtone_request_success_total", "error"),
        ("overtone_computed_tokens_total", "decode"),
    ):
        assert found[key] == 0


def test_the_router():
    metrics = Metrics()
    metrics.router.observe("sql", 0.0005, 0.9)
    metrics.router.observe(None, 0.0005, 0.4, abstention="unsure")
    metrics.router.observe("sql", 0.0005, 0.5, near_tie=True, session="kept")
    found = samples(metrics)
    assert found["overtone_router_decisions_total", "sql"] == 2
    assert found["overtone_router_fallbacks_total",] == 1
    assert found["overtone_router_seconds_count",] == 3
    assert found["overtone_router_confidence_sum",] == pytest.approx(1.8)
    assert found["overtone_router_abstentions_total", "unsure"] == 1
    assert found["overtone_router_abstentions_total", "none"] == 0
    assert found["overtone_router_near_ties_total",] == 1
    assert found["overtone_router_session_turns_total", "kept"] == 1
    assert found["overtone_router_session_turns_total", "switched"] == 0


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


def test_loads_and_evictions():
    metrics = Metrics()
    for tier in ("host", "device"):
        metrics.engine.on_expert_load("sql", 0.002, 1000, tier)
    metrics.engine.on_expert_evict("sql", "device")
    found = samples(metrics)
    assert found["overtone_expert_loads_total", "device", "sql"] == 1
    assert found["overtone_expert_evictions_total", "device", "sql"] == 1
    assert found["overtone_expert_load_bytes_total", "host"] == 1000


def test_a_request_whose_expert_cannot_be_loaded_was_not_run():
    metrics = Metrics()
    before = samples(metrics)
    for reason in ("damaged", "damaged", "missing"):
        metrics.engine.on_expert_failure("sql", reason)
        metrics.engine.on_finish(record(generated_tokens=0, finish_reason="error", scheduled=None, first_token=None))
    found = samples(metrics)
    assert found["overtone_expert_load_failures_total", "damaged", "sql"] == 2
    assert found["overtone_expert_load_failures_total", "missing", "sql"] == 1
    assert before["overtone_expert_load_failures_total", "damaged", "other"] == 0
    assert ("overtone_expert_requests_total", "sql") not in found


def test_an_expert_named_other_is_told_from_the_rest():
    names = CappedNames(2)
    assert [names.label(name) for name in ("a", "other", "b", "other", "c")] == [
        "a", "other (expert)", "other", "other (expert)", "other",
    ]  # fmt: skip


def test_two_names_of_one_content_are_one_expert_in_a_tier():
    metrics = Metrics()
    metrics.watch(lambda: dataclasses.replace(STATS, experts_resident=("a", "twin"), contents_resident=1))
    found = samples(metrics)
    assert found["overtone_experts_resident", "device"] == 1
    assert found["overtone_expert_resident", "a", "device"] == found["overtone_expert_resident", "device", "twin"] == 1


def test_rejections_by_reason():
    metrics = Metrics()
    metrics.engine.on_reject("QueueFull")
    assert samples(metrics)["overtone_admission_rejections_total", "QueueFull"] == 1


def serve_experts(metrics: Metrics, number: int) -> None:
    """Let `number` experts be loaded, run, routed to and evicted."""
    names = tuple(f"customer-{n}-expert-with-a-long-name" for n in range(number))
    for name in names:
        for tier in ("host", "device"):
            metrics.engine.on_expert_load(name, 0.001, 10, tier)
            metrics.engine.on_expert_evict(name, tier)
        metrics.engine.on_expert_failure(name, "damaged")
        metrics.engine.on_finish(record(experts=(name,)))
        metrics.http.admitted((name,))
        metrics.router.observe(name, 0.0005, 0.9)
    metrics.watch(lambda: dataclasses.replace(STATS, experts_resident=names[:64], experts_on_host=names))


def test_the_label_other_holds_what_the_named_experts_do_not():
    metrics = Metrics(expert_labels=20)
    serve_experts(metrics, 1000)
    found = samples(metrics)
    for name, labels in (
        ("overtone_expert_requests_total", ()),
        ("overtone_expert_generation_tokens_total", ()),
        ("overtone_router_decisions_total", ()),
        ("overtone_expert_loads_total", ("host",)),
        ("overtone_expert_evictions_total", ("device",)),
        ("overtone_expert_load_failures_total", ("damaged",)),
        ("overtone_expert_resident", ("host",)),
    ):
        series = {key: value for key, value in found.items() if key[0] == name and set(labels) <= set(key[1:])}
        assert len(series) == 21
        each = 5 if "tokens" in name else 1
        assert series[(name, *sorted((*labels, "other")))] == 980 * each
        assert sum(series.values()) == 1000 * each


@pytest.fixture
def as_served() -> Iterator[None]:
    """Without the times of birth, as `serve.api.server.run` has it."""
    disable_created_metrics()
    yield
    enable_created_metrics()


@pytest.mark.promise(number=13)
@pytest.mark.usefixtures("as_served")
@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_a_thousand_experts_do_not_make_the_scrape_long(accept: str):
    many, few = Metrics(), Metrics()
    serve_experts(many, 1000)
    serve_experts(few, EXPERT_LABELS + 1)
    for metrics in (many, few):
        metrics.render()
    assert len(samples(many)) == len(samples(few))
    assert len(many.render(accept)[0]) < SCRAPE_BYTES


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
