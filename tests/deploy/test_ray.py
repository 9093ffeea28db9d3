"""The Ray Serve configs say what Ray Serve and the application understand. Nothing is started."""

from pathlib import Path

import pytest
import yaml

from serve.cluster.deployment import Deployment

FOLDER = Path(__file__).parents[2] / "deploy" / "ray"
CONFIGS = {
    "serve.yaml": lambda document: document,
    "rayservice.yaml": lambda document: yaml.safe_load(document["spec"]["serveConfigV2"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_is_one(name: str):
    schema = pytest.importorskip("ray.serve.schema", reason="needs the extra ray")
    config = CONFIGS[name](yaml.safe_load((FOLDER / name).read_text()))
    (application,) = schema.ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "serve.cluster.app:application"
    deployment = Deployment.model_validate(application.args)
    assert deployment.settings.bundle == Path("/srv/bundles/mine")
    assert deployment.settings.engine.max_num_seqs == 64


def test_a_mistake_in_the_arguments_is_named():
    settings = {"bundle": "/srv/bundles/mine"}
    with pytest.raises(ValueError, match="replica\n"):
        Deployment.model_validate({"settings": settings, "replica": 2})
    with pytest.raises(ValueError, match="max_replicas is 1; it must be at least replicas, 2"):
        Deployment.model_validate({"settings": settings, "replicas": 2, "max_replicas": 1})
    with pytest.raises(ValueError, match="max_num_seqs is 0"):
        Deployment.model_validate({"settings": settings | {"engine": {"max_num_seqs": 0}}})
