"""What the engine does, as an `EngineObserver`."""

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serve.engine import RequestRecord, StepRecord
from serve.metrics.buckets import (
    REQUEST_SECONDS,
    SHORT_SECONDS,
    STEP_EXPERTS,
    STEP_TOKENS,
    TOKEN_SECONDS,
    token_counts,
)
from serve.metrics.labels import CappedNames

_BACKBONE = "backbone"


class EngineMetrics:
    """Steps, finished requests, KV blocks and experts. Calls come from several threads and cost microseconds."""

    def __init__(self, registry: CollectorRegistry, experts: CappedNames):
        self._experts = experts

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"overtone_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"overtone_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"overtone_{name}", text, labels, buckets=buckets, registry=registry)

        self._running = gauge("num_requests_running", "Sequences in the batch.")
        self._waiting = gauge("num_requests_waiting", "Sequences that wait to be scheduled.")
        self._kv_usage = gauge("kv_cache_usage_perc", "KV blocks held by sequences, as a fraction of all (1 = full).")
        self._prefix_queries = counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._prefix_hits = counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._preemptions = counter("num_preemptions", "Sequences that lost their KV blocks to others.")
        self._steps = counter("steps", "Engine steps by the way experts were applied.", "mode")
        self._step_seconds = histogram("step_seconds", "Duration of a step.", TOKEN_SECONDS)
        self._step_tokens = histogram("iteration_tokens_total", "Tokens computed in a step.", STEP_TOKENS)
        self._step_experts = histogram("iteration_experts", "Distinct experts in a step's batch.", STEP_EXPERTS)

        self._queue = histogram("request_queue_time_seconds", "From arrival to the first step.", REQUEST_SECONDS)
        self._prefill = histogram(
            "request_prefill_time_seconds", "From the first step to the first token.", REQUEST_SECONDS
        )
        self._decode = histogram("request_decode_time_seconds", "From the first token to the last.", REQUEST_SECONDS)
        self._e2e = histogram("e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_SECONDS)
        self._tpot = histogram(
            "request_time_per_output_token_seconds", "Decode time of a request by its tokens but one.", TOKEN_SECONDS
        )
        self._prompt_length = histogram("request_prompt_tokens", "Tokens of a request's prompt.", token_counts())
        self._generated_length = histogram("request_generation_tokens", "Tokens a request generated.", token_counts())
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of finished requests.")
        self._cached_tokens = counter("prompt_tokens_cached", "Prompt tokens that the prefix cache spared.")
        self._expert_requests = counter("expert_requests", "Requests that ran an expert.", "expert")
        self._expert_tokens = counter("expert_generation_tokens", "Tokens that an expert generated.", "expert")

        self._loads = counter("expert_loads", "Experts brought into a tier.", "expert", "tier")
        self._evictions = counter("expert_evictions", "Experts that left a tier.", "expert", "tier")
        self._resident = gauge("expert_resident", "Experts in a tier now.", "expert", "tier")
        self._load_seconds = histogram("expert_load_seconds", "Duration of such a load.", SHORT_SECONDS, "tier")
        self._load_bytes = counter("expert_load_bytes", "Bytes of experts brought into a tier.", "tier")
        self._rejections = counter("admission_rejections", "Requests not admitted.", "reason")

    def on_step(self, record: StepRecord) -> None:
        """Count one step."""
        self._running.set(record.running)
        self._waiting.set(record.waiting)
        self._kv_usage.set(record.kv_blocks_used / max(record.kv_blocks_total, 1))
        self._prefix_queries.inc(record.prefix_query_tokens)
        self._prefix_hits.inc(record.prefix_hit_tokens)
        self._preemptions.inc(record.preemptions)
        self._steps.labels(record.mode).inc()
        self._step_seconds.observe(record.seconds)
        self._step_tokens.observe(record.tokens)
        self._step_experts.observe(record.distinct_experts)

    def on_finish(self, record: RequestRecord) -> None:
        """Count one finished request; intervals whose ends were not both reached are left out."""
        self._prompt_tokens.inc(record.prompt_tokens)
        self._cached_tokens.inc(record.cached_tokens)
        self._prompt_length.observe(record.prompt_tokens)
        self._generated_length.observe(record.generated_tokens)
        for name in record.experts or (_BACKBONE,):
            label = self._experts.label(name)
            self._expert_requests.labels(label).inc()
            self._expert_tokens.labels(label).inc(record.generated_tokens)
        if record.scheduled is None:
            return
        self._queue.observe(record.scheduled - record.arrival)
        if record.first_token is None:
            return
        decode = record.finished - record.first_token
        self._prefill.observe(record.first_token - record.scheduled)
        self._decode.observe(decode)
        self._e2e.observe(record.finished - record.arrival)
        if record.generated_tokens > 1:
            self._tpot.observe(decode / (record.generated_tokens - 1))

    def on_expert_load(self, name: str, seconds: float, nbytes: int, tier: Literal["host", "device"]) -> None:
        """Count an expert that arrived in a tier."""
        label = self._experts.label(name)
        self._loads.labels(label, tier).inc()
        self._resident.labels(label, tier).inc()
        self._load_seconds.labels(tier).observe(seconds)
        self._load_bytes.labels(tier).inc(nbytes)

    def on_expert_evict(self, name: str, tier: Literal["host", "device"]) -> None:
        """Count an expert that left a tier."""
        label = self._experts.label(name)
        self._evictions.labels(label, tier).inc()
        self._resident.labels(label, tier).dec()

    def on_reject(self, reason: str) -> None:
        """Count a request that was not admitted."""
        self._rejections.labels(reason).inc()
