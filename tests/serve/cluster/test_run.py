"""What deploying says and does about keys and signals. No Ray is started."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray.serve", reason="needs the extra ray")  # whose own import warns

from serve.cluster import run
from serve.cluster.deployment import Deployment
from serve.cluster.run import deploy_to, serve_here, told_to_stop
from serve.config import ApiSettings, ServerSettings


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is warned of by a deployment of which nothing is started."""
    found: list[str] = []

    @contextlib.contextmanager
    def local_ray(host: str, port: int, keep_alive_timeout: float) -> Iterator[str]:
        yield f"http://{host}:{port}"

    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    fake = SimpleNamespace(init=lambda **_: None, shutdown=lambda: None, get_runtime_context=lambda: context)
    monkeypatch.setattr(run, "ray", fake)
    monkeypatch.setattr(run, "ray_serve", SimpleNamespace(delete=lambda name: None))
    monkeypatch.setattr(run, "local_ray", local_ray)
    monkeypatch.setattr(run, "deploy", lambda *_: None)
    monkeypatch.setattr(run, "drain", lambda timeout: None)
    monkeypatch.setattr(run, "configure_logging", lambda *_: None)
    monkeypatch.setattr(logging.getLogger("overtone"), "warning", found.append)
    return found


def a_deployment(*keys: str) -> Deployment:
    return Deployment(settings=ServerSettings(Path("bundle"), api=ApiSettings(api_keys=keys)))


def stop(url: str, address: str) -> None:
    """Once it is ready."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [("127.0.0.1", (), False), ("0.0.0.0", ("k",), False), ("0.0.0.0", (), True)],
)
def test_a_public_address_without_a_key(warnings: list[str], host: str, keys: tuple[str, ...], warned: bool):
    serve_here(a_deployment(*keys), host, 8000, stop)
    assert [warning.partition(" ")[0] for warning in warnings] == (["0.0.0.0"] if warned else [])


@pytest.mark.parametrize("keys", [(), ("k",)])
def test_a_cluster_without_a_key(warnings: list[str], keys: tuple[str, ...]):
    deploy_to("cluster:6379", a_deployment(*keys))
    assert len(warnings) == (not keys)


def test_a_second_signal_ends_the_process_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, told_to_stop() as told:
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it goes on")
    assert ended.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before
