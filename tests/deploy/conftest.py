import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import disable_created_metrics, enable_created_metrics

from serve.api.generate.service import Service
from serve.api.loading import load_runtime
from serve.config import ServerSettings
from serve.engine import EngineConfig
from serve.metrics import Metrics
from tests.serve.api.bundles import TOPICS, write_speaking_bundle
from tests.serve.api.fakes import live

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server on a real engine with one slot for two experts."""
    bundle = write_speaking_bundle(tmp_path_factory.mktemp("speaker") / "bundle").bundle.path
    disable_created_metrics()  # as `serve.api.server.run` does
    try:
        metrics = Metrics(version="1.2.3")
        engine = EngineConfig(kv_cache_bytes=2**24, max_expert_slots=1, max_num_seqs=4, max_num_queued_reqs=2)
        runtime = load_runtime(ServerSettings(bundle, engine=engine), metrics)
        runtime.engine.start()
        try:
            with live(Service(metrics, runtime)) as url:
                use(url)
                yield url
        finally:
            asyncio.run(runtime.engine.shutdown(0))
    finally:
        enable_created_metrics()


def use(url: str) -> None:
    """Something of everything that is counted."""
    with httpx.Client(base_url=url, timeout=60) as http:
        for prompt, model in [
            ("hello", "backbone"),
            ("no topic", "auto"),
            *((text, "auto") for text in TOPICS.values()),
        ]:
            body = {"model": model, "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
            assert http.post("/v1/completions", json=body).status_code == 200
        assert http.post("/v1/completions", json={"model": "sql", "prompt": "x", "n": 8}).status_code == 429


@pytest.fixture(scope="session")
def scrape(server: str) -> str:
    """What /metrics says after some use."""
    return httpx.get(f"{server}/metrics").text
