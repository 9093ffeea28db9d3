import asyncio
import dataclasses
import time

from prometheus_client.parser import text_string_to_metric_families

from serve.api.loading import warm_up
from serve.engine import Request
from serve.metrics import Metrics
from tests.serve.api.fakes import FakeEngine, fake_service
from tests.serve.conftest import TinyBundle, engine_of, greedy


def counts(metrics: Metrics) -> dict[str, float]:
    """Every counter and every count of a histogram, except those of the experts' tiers and of the process."""
    found = {}
    for family in text_string_to_metric_families(metrics.render()[0].decode()):
        if not family.name.startswith(("overtone_expert_load", "overtone_expert_evict", "process_")):
            for sample in family.samples:
                if sample.name.endswith(("_total", "_count")):
                    found[sample.name + str(sample.labels)] = sample.value
    return found


def test_the_servers_own_requests_are_not_counted(tiny: TinyBundle) -> None:
    metrics = Metrics()

    async def run() -> None:
        engine = engine_of(tiny.bundle, metrics.engine)
        service = fake_service(FakeEngine(), ("a",))
        assert service.runtime is not None
        engine.start()
        before = counts(metrics)
        await warm_up(dataclasses.replace(service.runtime, engine=engine))
        assert counts(metrics) == before
        async for _ in engine.generate(Request("client", (5, 6, 7), greedy(2))):
            pass
        deadline = time.monotonic() + 20
        while counts(metrics)["overtone_prompt_tokens_total{}"] != 3:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        await engine.shutdown(0)

    asyncio.run(run())
    assert counts(metrics)["overtone_expert_requests_total{'expert': 'backbone'}"] == 1
