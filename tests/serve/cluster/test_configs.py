"""What Ray Serve's own commands make of the application and of the configs in deploy/ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("ray.serve", reason="needs the extra ray")  # whose own import warns

from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

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
    for app in found:
        assert app.import_path == "serve.cluster.app:application"
        arguments = Deployment.model_validate(app.args)
        assert (arguments.replicas, arguments.max_replicas) == (2, 8)
        assert application(arguments) is not None


def test_a_mistake_in_a_config_is_named():
    with pytest.raises(ValueError, match="max_replicas is 1; it must be at least replicas, 2"):
        Deployment.model_validate({"settings": {"bundle": "/b"}, "replicas": 2, "max_replicas": 1})


def test_serve_build_writes_a_config(speaker: TinyBundle, tmp_path: Path):
    config = tmp_path / "serve.yaml"
    command = [*SERVE, "build", "serve.cluster.app:app", "-o", str(config)]
    environment = {**os.environ, "OVERTONE_BUNDLE": str(speaker.bundle.path), "OVERTONE_REPLICAS": "3"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    (app,) = ServeDeploySchema(**yaml.safe_load(config.read_text())).applications
    assert app.import_path == "serve.cluster.app:app"
    assert {one.name: one.num_replicas for one in app.deployments} == {"engine": 3, "ingress": 1}


def test_serve_build_without_a_bundle_says_so(tmp_path: Path):
    command = [*SERVE, "build", "serve.cluster.app:app", "-o", str(tmp_path / "x")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERTONE_")}
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "OVERTONE_BUNDLE is not set" in ended.stderr
