"""What is true at the moment of a scrape."""

import time
from collections import Counter
from collections.abc import Iterable, Set

from prometheus_client import CollectorRegistry, Gauge

from serve.engine import EngineStats
from serve.metrics.labels import CappedNames

PHASES = ("loading", "ready", "draining", "dead")


class StateMetrics:
    """Gauges that are read off the engine at a scrape: an idle engine's are as true as a busy one's."""

    def __init__(self, registry: CollectorRegistry, experts: CappedNames):
        self._experts = experts

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"overtone_{name}", text, labels, registry=registry)

        self._phase = gauge("phase", "1 for the phase that the server is in, 0 for the others.", "phase")
        self._running = gauge("num_requests_running", "Sequences in the batch.")
        self._waiting = gauge("num_requests_waiting", "Sequences that wait to be scheduled.")
        self._waiting_tokens = gauge("num_tokens_waiting", "Tokens of the sequences that wait.")
        self._kv_usage = gauge("kv_cache_usage_perc", "KV blocks held by sequences, as a fraction of all (1 = full).")
        self._kv_blocks = gauge("kv_cache_blocks", "KV blocks in total.")
        self._kv_bytes = gauge("kv_cache_bytes", "Memory of all KV blocks.")
        self._weights = gauge(
            "weight_bytes",
            "Memory of the backbone's weights as they are held, and what they would take unquantised.",
            "storage",
        )
        self._slots = gauge("expert_slots", "Experts that can be on the device at once.")
        self._tier_bytes = gauge("expert_tier_bytes", "Memory of a tier's experts; a slot's counts when empty.", "tier")
        self._tier_experts = gauge("experts_resident", "Experts in a tier now; equal files count once.", "tier")
        self._resident = gauge("expert_resident", "1 while an expert is in a tier.", "expert", "tier")
        # vLLM's name and labels, that balancers which know it understand this server, too.
        self._affinity = gauge(
            "lora_requests_info",
            "Seconds since 1970; the labels say how many experts fit in slots, which are there, and which are awaited.",
            *("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        self._shown: dict[str, set[str]] = {"host": set(), "device": set()}

    def phase(self, current: str) -> None:
        """Show the server's phase, one of `PHASES`."""
        for phase in PHASES:
            self._phase.labels(phase).set(phase == current)

    def engine(self, stats: EngineStats, wanted: Set[str] = frozenset()) -> None:
        """Show the engine's state.

        Args:
            stats: the engine's.
            wanted: experts that requests under way need.
        """
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._waiting_tokens.set(stats.waiting_tokens)
        self._kv_usage.set(stats.kv_blocks_used / max(stats.kv_blocks_total, 1))
        self._kv_blocks.set(stats.kv_blocks_total)
        self._kv_bytes.set(stats.kv_cache_bytes)
        self._weights.labels("held").set(stats.weight_bytes)
        self._weights.labels("unquantised").set(stats.unquantised_weight_bytes)
        self._slots.set(stats.expert_slots)
        self._tier("host", stats.experts_on_host, stats.contents_on_host, stats.expert_host_bytes)
        self._tier("device", stats.experts_resident, stats.contents_resident, stats.expert_device_bytes)
        self._affinity.clear()
        self._affinity.labels(
            *(stats.expert_slots, self._list(stats.experts_resident), self._list(wanted - set(stats.experts_resident)))
        ).set(time.time())

    def _tier(self, tier: str, names: tuple[str, ...], contents: int, nbytes: int) -> None:
        self._tier_bytes.labels(tier).set(nbytes)
        self._tier_experts.labels(tier).set(contents)
        counts = Counter(self._experts.label(name) for name in names)
        self._shown[tier] |= counts.keys()  # one that left is shown as 0: series that end look like failed scrapes
        for label in self._shown[tier]:
            self._resident.labels(label, tier).set(counts[label])

    def _list(self, names: Iterable[str]) -> str:
        return ",".join(sorted({self._experts.label(name) for name in names}))
