"""What the engine does, as an `EngineObserver`."""

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from serve.engine import (
    Draining,
    EngineDead,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    RequestRecord,
    StepRecord,
    UnknownExpert,
)
from serve.engine.records import StepMode
from serve.experts import LoadFailure
from serve.metrics.labels import (
    OTHER,
    REQUEST_SECONDS,
    SHORT_SECONDS,
    STEP_EXPERTS,
    STEP_SEQUENCES,
    STEP_TOKENS,
    TOKEN_SECONDS,
    CappedNames,
    token_counts,
)

_BACKBONE = "backbone"
_REFUSALS = (QueueFull, UnknownExpert, PromptTooLong, InvalidRequest, Draining, EngineDead)
_REASONS = (*(refusal.__name__ for refusal in _REFUSALS), "Loading")
_TIERS = ("host", "device")


class EngineMetrics:
    """Steps, finished requests and the experts' coming and going. Calls come from several threads, and are quick."""

    def __init__(self, registry: CollectorRegistry, experts: CappedNames):
        self._experts = experts

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"overtone_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"overtone_{name}", text, labels, buckets=buckets, registry=registry)

        self._prefix_queries = counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._prefix_hits = counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._preemptions = counter("num_preemptions", "Sequences that lost their KV blocks to others.")
        self._steps = counter("steps", "Engine steps by the way experts were applied.", "mode")
        self._step_seconds = histogram("step_seconds", "Duration of a step.", TOKEN_SECONDS)
        self._computed = counter("computed_tokens", "Tokens computed in steps, recomputed ones too.", "phase")
        self._step_tokens = histogram("iteration_tokens", "Tokens computed in a step.", STEP_TOKENS)
        self._step_sequences = histogram("iteration_sequences", "Sequences in a step's batch.", STEP_SEQUENCES)
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
        self._cached_tokens = counter("prompt_tokens_cached", "Prompt tokens that were read from the prefix cache.")
        self._expert_requests = counter("expert_requests", "Requests that ran an expert.", "expert")
        self._expert_tokens = counter("expert_generation_tokens", "Tokens that an expert generated.", "expert")

        self._loads = counter("expert_loads", "Experts brought into a tier.", "expert", "tier")
        self._evictions = counter("expert_evictions", "Experts that left a tier.", "expert", "tier")
        self._load_failures = counter(
            "expert_load_failures", "Loads of experts that failed, by what was wrong.", "expert", "reason"
        )
        self._load_seconds = histogram("expert_load_seconds", "Duration of loading an expert.", SHORT_SECONDS, "tier")
        self._load_bytes = counter("expert_load_bytes", "Bytes of experts brought into a tier.", "tier")
        self._rejections = counter("admission_rejections", "Requests not admitted.", "reason")
        self._begin_at_zero()

    def on_step(self, record: StepRecord) -> None:
        """Count one step."""
        self._prefix_queries.inc(record.prefix_query_tokens)
        self._prefix_hits.inc(record.prefix_hit_tokens)
        self._preemptions.inc(record.preemptions)
        self._steps.labels(record.mode).inc()
        self._step_seconds.observe(record.seconds)
        self._computed.labels("prefill").inc(record.prefill_tokens)
        self._computed.labels("decode").inc(record.decode_tokens)
        self._step_tokens.observe(record.tokens)
        self._step_sequences.observe(record.sequences)
        self._step_experts.observe(record.distinct_experts)

    def on_finish(self, record: RequestRecord) -> None:
        """Count one finished request; intervals whose ends were not both reached are left out."""
        if record.prompt_counts:
            self._prompt_tokens.inc(record.prompt_tokens)
            self._cached_tokens.inc(record.cached_tokens)
            self._prompt_length.observe(record.prompt_tokens)
        self._generated_length.observe(record.generated_tokens)
        if record.scheduled is None:  # it left the queue, or its expert could not be loaded
            return
        for name in record.experts or (_BACKBONE,):
            label = self._experts.label(name)
            self._expert_requests.labels(label).inc()
            self._expert_tokens.labels(label).inc(record.generated_tokens)
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
        self._load_seconds.labels(tier).observe(seconds)
        self._load_bytes.labels(tier).inc(nbytes)

    def on_expert_evict(self, name: str, tier: Literal["host", "device"]) -> None:
        """Count an expert that left a tier."""
        self._evictions.labels(self._experts.label(name), tier).inc()

    def on_expert_failure(self, name: str, reason: LoadFailure) -> None:
        """Count an expert that could not be loaded."""
        self._load_failures.labels(self._experts.label(name), reason).inc()

    def on_reject(self, reason: str) -> None:
        """Count a request that was not admitted, whether the engine or the API refused it."""
        self._rejections.labels(reason).inc()

    def _begin_at_zero(self) -> None:
        """Show every series whose labels are known: the first increase of one that was not there has no rate."""
        for mode in get_args(StepMode):
            self._steps.labels(mode)
        for phase in ("prefill", "decode"):
            self._computed.labels(phase)
        for tier in _TIERS:
            self._load_seconds.labels(tier)
            self._load_bytes.labels(tier)
        for failure in get_args(LoadFailure):
            self._load_failures.labels(OTHER, failure)
        for reason in _REASONS:
            self._rejections.labels(reason)
