"""Experts with a low-rank part that are loaded while the server runs."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from transformers import PreTrainedModel

from merge.bundle import Expert, backbone_digest, write_expert
from serve.api.generate.service import Service
from serve.api.loading import load_runtime
from serve.config import ApiSettings, ServerSettings
from serve.engine import EngineConfig
from serve.metrics import Metrics
from tests.serve.api.bundles import write_speaking_bundle
from tests.serve.api.fakes import byte_text, live
from tests.serve.conftest import TinyBundle, random_low_rank

RANK = 3
PROMPT = "SELECT city FROM table"


def adapter(model: PreTrainedModel, digest: str, name: str, rank: int, seed: int) -> Expert:
    generator = torch.Generator().manual_seed(seed)
    low_rank = {
        weight: random_low_rank(tensor.shape, rank, generator)
        for weight, tensor in model.named_parameters()
        if tensor.dim() == 2
    }
    return Expert(name, digest, 0.0, {}, {}, low_rank=low_rank)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    path = tmp_path_factory.mktemp("speaker") / "bundle"
    return write_speaking_bundle(path, more=lambda model, digest: [adapter(model, digest, "lora", RANK, 0)])


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def client(speaker: TinyBundle, experts: Path) -> Iterator[httpx.Client]:
    metrics = Metrics()
    runtime = load_runtime(ServerSettings(speaker.bundle.path, engine=EngineConfig(kv_cache_bytes=2**22)), metrics)
    runtime.engine.start()
    settings = ApiSettings(admin_api_keys=("root",), expert_dirs=(experts,))
    try:
        with (
            live(Service(metrics, runtime), settings) as url,
            httpx.Client(base_url=url, timeout=60, headers={"Authorization": "Bearer root"}) as http,
        ):
            yield http
    finally:
        asyncio.run(runtime.engine.shutdown(0))


def load(client: httpx.Client, speaker: TinyBundle, path: Path, rank: int) -> httpx.Response:
    made = adapter(speaker.model, backbone_digest(speaker.bundle.backbone_dir), "new", rank, 7)
    speaker.experts["new"] = made
    write_expert(path, made)
    return client.post("/v1/experts/load", json={"name": "new", "path": path.name})


def text(client: httpx.Client, model: str) -> str:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    found: str = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    return found


def test_a_low_rank_expert_of_the_bundle_answers(client: httpx.Client, speaker: TinyBundle) -> None:
    assert text(client, "lora") == byte_text(speaker.greedy(PROMPT.encode(), 8, ("lora", 1.0)))


def test_one_that_is_loaded_answers_as_dense_weights_do(
    client: httpx.Client, speaker: TinyBundle, experts: Path
) -> None:
    loaded = load(client, speaker, experts / "new.safetensors", RANK - 1)
    assert loaded.status_code == 200, loaded.text
    found = text(client, "new")
    assert found == byte_text(speaker.greedy(PROMPT.encode(), 8, ("new", 1.0)))
    assert found != text(client, "lora")


def test_a_rank_over_that_of_the_slots_is_refused(client: httpx.Client, speaker: TinyBundle, experts: Path) -> None:
    refused = load(client, speaker, experts / "large.safetensors", RANK + 1)
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert f"has rank {RANK + 1}, but the slots were made for rank {RANK}, the largest of any expert in" in message
    assert "\n" not in message
