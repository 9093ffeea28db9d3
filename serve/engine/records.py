"""What the engine reports to an observer (metrics, logs), and its statistics."""

from dataclasses import dataclass
from typing import Literal, Protocol

from serve.engine.request import FinishReason
from serve.experts import LoadFailure

StepMode = Literal["plain", "patched", "fused"]


@dataclass(frozen=True)
class StepRecord:
    """One step.

    Attributes:
        seconds: from the start of scheduling to the last sampled token.
        tokens: tokens computed, of which `prefill_tokens` of prompts (or recomputed) and `decode_tokens`.
        sequences: sequences in the batch.
        distinct_experts: experts in the batch.
        mode: "plain" without experts, "patched" with one expert in the weights, "fused" with residuals added.
        running, waiting: sequences after the step.
        kv_blocks_used, kv_blocks_total: blocks held by sequences, and all there are.
        prefix_query_tokens, prefix_hit_tokens: prompt tokens looked up and found when sequences were admitted.
        preemptions: sequences that lost their blocks in this step.
    """

    seconds: float
    tokens: int
    prefill_tokens: int
    decode_tokens: int
    sequences: int
    distinct_experts: int
    mode: StepMode
    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    preemptions: int


@dataclass(frozen=True)
class RequestRecord:
    """One finished request. Times are `time.monotonic()` seconds, None if that point was not reached.

    `prompt_counts` is False for further continuations of a prompt that another record counts.
    """

    request_id: str
    experts: tuple[str, ...]
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    finish_reason: FinishReason
    arrival: float
    scheduled: float | None
    first_token: float | None
    finished: float
    prompt_counts: bool = True


@dataclass(frozen=True)
class EngineStats:
    """The engine at this moment.

    Experts are names; several names may have one content, which is stored once. Bytes are exact sizes of the tensors.
    """

    running: int
    waiting: int
    waiting_tokens: int
    kv_blocks_used: int
    kv_blocks_total: int
    kv_cache_bytes: int
    expert_slots: int
    expert_device_bytes: int
    expert_host_bytes: int
    experts_resident: tuple[str, ...]
    experts_on_host: tuple[str, ...]
    contents_resident: int
    contents_on_host: int
    weight_bytes: int = 0
    unquantised_weight_bytes: int = 0


class EngineObserver(Protocol):
    """Receives events, from the engine's and the loader's threads: a method must be quick and must not raise."""

    def on_step(self, record: StepRecord) -> None:
        """A step is done."""

    def on_finish(self, record: RequestRecord) -> None:
        """A request has ended, for any reason."""

    def on_expert_load(self, name: str, seconds: float, nbytes: int, tier: Literal["host", "device"]) -> None:
        """An expert's residual arrived in a tier."""

    def on_expert_evict(self, name: str, tier: Literal["host", "device"]) -> None:
        """An expert's residual left a tier."""

    def on_expert_failure(self, name: str, reason: LoadFailure) -> None:
        """A registered expert could not be loaded."""

    def on_reject(self, reason: str) -> None:
        """A request was not admitted: the name of the error's class."""


class SilentObserver:
    """Observes nothing."""

    def on_step(self, record: StepRecord) -> None:
        """Ignore."""

    def on_finish(self, record: RequestRecord) -> None:
        """Ignore."""

    def on_expert_load(self, name: str, seconds: float, nbytes: int, tier: Literal["host", "device"]) -> None:
        """Ignore."""

    def on_expert_evict(self, name: str, tier: Literal["host", "device"]) -> None:
        """Ignore."""

    def on_expert_failure(self, name: str, reason: LoadFailure) -> None:
        """Ignore."""

    def on_reject(self, reason: str) -> None:
        """Ignore."""
