"""One exposition of all processes, which a `replica` label distinguishes."""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from serve.metrics import Metrics

INGRESS = "ingress"
LABEL = "replica"

Families = Callable[[], Awaitable[Sequence[tuple[str, list[Metric]]]]]


class ClusterMetrics(Metrics):
    """The ingress' own metrics, and at a scrape the replicas', too."""

    def __init__(self, version: str = ""):
        super().__init__(version=version)
        self._replicas: Families | None = None

    def join(self, replicas: Families) -> None:
        """Ask `replicas` for (name, metrics) at every scrape."""
        self._replicas = replicas

    async def scrape(self, accept: str = "", phase: str = "ready") -> tuple[bytes, str]:
        """All that answer, in one body."""
        found = [] if self._replicas is None else await self._replicas()
        encode, content_type = choose_encoder(accept)
        merged = CollectorRegistry()
        merged.register(_Joined([(INGRESS, self.families(phase)), *found]))
        return encode(merged), content_type


class _Joined(Collector):
    """Families of several processes, joined by name: a name may appear once in an exposition."""

    def __init__(self, sources: Sequence[tuple[str, list[Metric]]]):
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        joined: dict[str, Metric] = {}
        for source, families in self._sources:
            for family in families:
                whole = joined.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                whole.samples += [sample._replace(labels={**sample.labels, LABEL: source}) for sample in family.samples]
        return joined.values()
