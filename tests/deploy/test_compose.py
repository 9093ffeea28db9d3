"""compose.yaml mounts what exists and says which versions it means."""

from typing import Any

import pytest
import typer
import yaml

from serve.cli import app
from serve.cli.options import check_variables
from tests.deploy.conftest import DEPLOY

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_three_services():
    assert set(COMPOSE["services"]) == {"overtone", "prometheus", "grafana"}


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service(name: str):
    service = COMPOSE["services"][name]
    if "image" in service:
        _, _, tag = service["image"].partition(":")
        assert tag not in {"", "latest"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for mount in service["volumes"]:
        source = mount.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).is_dir()
        elif not source.startswith("${"):
            assert source in COMPOSE["volumes"]


def test_the_pieces_know_each_other():
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["overtone:8000"]}]
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/overtone.yaml").read_text())["providers"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in COMPOSE["services"]["grafana"]["volumes"]


def test_its_variables_are_read():
    names = COMPOSE["services"]["overtone"]["environment"]
    check_variables(typer.main.get_command(app._program()), dict.fromkeys(names, "x"))
    assert names["OVERTONE_API_KEY"] is None  # no default, since an empty key is not valid


def test_the_container_is_given_longer_than_the_server_takes_to_drain():
    from serve.config import ServerSettings

    grace = int(COMPOSE["services"]["overtone"]["stop_grace_period"].removesuffix("s"))
    assert grace > ServerSettings(bundle=DEPLOY).shutdown_timeout
