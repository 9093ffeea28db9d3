"""What Ray Serve's own commands make of the application and of the configs in deploy/ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("ray.serve", reason="needs the extra ray")  # whose own import warns

from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from serve.cluster import app
from serve.cluster.app import application
from serve.cluster.deployment import Deployment
from tests.serve.conftest import TinyBundle

SERVE = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()"]
CONFIGS = Path(__file__).parents[3] / "deploy" / "ray"


def applications() -> list[ServeApplicationSchema]:
    """Of both configs, as Ray Serve reads them."""
    service = yaml.safe_load((CONFIGS / "rayservice.yaml").read_text())["spec"]["serveConfigV2"]
    texts = ((CONFIGS / "serve.yaml").read_text(), service)
    return [app for text in texts for app in ServeDeploySchema(**yaml.safe_load(text)).applications]


def test_the_configs_say_what_there_is():
    found = applications()
    assert len(found) == 2
    for one in found:
        assert one.import_path == "serve.cluster.app:application"
        arguments = Deployment.model_validate(one.args)
        assert (arguments.replicas, arguments.max_replicas) == (2, 8)
        assert application(arguments) is not None


def test_serve_build_writes_a_config(speaker: TinyBundle, tmp_path: Path):
    config = tmp_path / "serve.yaml"
    command = [*SERVE, "build", "serve.cluster.app:app", "-o", str(config)]
    environment = {**os.environ, "OVERTONE_BUNDLE": str(speaker.bundle.path), "OVERTONE_REPLICAS": "3"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    (built,) = ServeDeploySchema(**yaml.safe_load(config.read_text())).applications
    assert built.import_path == "serve.cluster.app:app"
    assert {one.name: one.num_replicas for one in built.deployments} == {"engine": 3, "ingress": 1}


def test_the_application_of_serve_build_needs_a_bundle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OVERTONE_BUNDLE", raising=False)
    with pytest.raises(ValueError, match="OVERTONE_BUNDLE is not set"):
        _ = app.app  # as `serve build` does
