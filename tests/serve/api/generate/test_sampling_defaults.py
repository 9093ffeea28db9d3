"""The sampling that the model's authors recommend, for what a request leaves out."""

import dataclasses
import json
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from merge.bundle.generation import SAMPLING_FIELDS
from serve.api.errors import ApiError
from serve.api.generate.settings import SamplingDefaults
from serve.api.loading import load_runtime
from serve.api.schemas import CompletionRequest
from serve.config import ServerSettings
from serve.metrics import Metrics
from tests.serve.api.bundles import write_speaking_bundle
from tests.serve.api.fakes import FakeEngine, fake_service, live

RECOMMENDED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05}


def test_what_a_request_says_comes_first():
    engine = FakeEngine()
    service = fake_service(engine)
    service.runtime = dataclasses.replace(service.runtime, defaults=SamplingDefaults(RECOMMENDED))
    body = {"model": "sql", "prompt": "hi"}
    with live(service) as url, httpx.Client(base_url=url) as client:
        client.post("/v1/completions", json=body)
        client.post("/v1/completions", json={**body, "temperature": 1.0, "top_k": -1, "top_p": None})
    first, second = (request.params for request in engine.requests)
    assert {name: getattr(first, name) for name in RECOMMENDED} == RECOMMENDED
    assert (second.temperature, second.top_k, second.top_p) == (1.0, 0, 0.95)


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ({}, {}),
        ({"eos_token_id": 2, "do_sample": True, "temperature": None, "max_new_tokens": 9}, {}),
        ({**RECOMMENDED, "min_p": 0.0}, RECOMMENDED),
        ({"temperature": 1.0, "top_p": 1, "top_k": 0}, {}),
    ],
)
def test_what_is_read(tmp_path: Path, config, given):
    assert SamplingDefaults.from_directory(tmp_path) == SamplingDefaults()
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert SamplingDefaults.from_directory(tmp_path).given == given
    assert SamplingDefaults().value(CompletionRequest(model="m", prompt="p"), "temperature") == 1.0


@pytest.mark.parametrize(("name", "value"), [("temperature", -1), ("top_p", "1"), ("top_k", 1.5)])
def test_a_value_out_of_range_is_named(tmp_path: Path, name: str, value):
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(ValueError, match=f"generation_config.json: {name} is .*--generation-config none"):
        SamplingDefaults.from_directory(tmp_path)


@pytest.mark.parametrize(("setting", "given"), [("auto", RECOMMENDED), ("none", {})])
def test_the_backbones_are_the_servers(tmp_path: Path, setting, given, caplog: pytest.LogCaptureFixture):
    bundle = write_speaking_bundle(tmp_path / "bundle", sampling=RECOMMENDED).bundle
    caplog.set_level("INFO", "overtone")
    settings = ServerSettings(bundle.path, generation_config=setting)
    assert load_runtime(settings, Metrics(), connect=lambda _: FakeEngine()).defaults.given == given
    assert ("temperature 0.6, top_p 0.95, top_k 20" in caplog.text) == bool(given)


@pytest.mark.parametrize("name", SAMPLING_FIELDS)
def test_the_bounds_are_a_requests(name: str):
    fits, _ = SAMPLING_FIELDS[name]
    for value in (-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 50, 100, 101):
        try:
            CompletionRequest.model_validate({"model": "m", "prompt": "p", name: value}, strict=True)
            taken = True
        except (ApiError, ValidationError):
            taken = False
        assert fits(value) == taken, value
