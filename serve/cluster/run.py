"""Deploying: on a Ray cluster that runs, or on one of this machine's own for as long as the command runs."""

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

import ray
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from serve.api.generate.service import Teach
from serve.api.logs import configure_logging
from serve.api.security.auth import KeyRing, open_to_others
from serve.api.server import listen
from serve.cluster.app import APPLICATION, cluster_application
from serve.cluster.deployment import Deployment

_DRAIN_MARGIN_SECONDS = 5.0
_OBJECT_STORE_BYTES = 256 * 2**20
"""Requests and tokens do not go through the object store; Ray's default is a third of the machine's memory."""

_log = logging.getLogger("overtone")


@contextlib.contextmanager
def local_ray(host: str, port: int, keep_alive_timeout: float = 75.0) -> Iterator[str]:
    """A Ray instance of this process' own, without dashboard, with Serve's HTTP proxy; ended at the end.

    Args:
        host: what the proxy listens on.
        port: its port; 0 takes a free one.
        keep_alive_timeout: seconds that a connection may stay open without a request, rounded up to whole ones.

    Yields:
        The proxy's URL.

    Raises:
        ServerError: the address cannot be listened on.
    """
    with contextlib.closing(listen(host, port)) as taken:
        port = taken.getsockname()[1]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's is 15: engines would wait for whatever else runs here
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.cluster.proxy:middlewares")
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
    )
    try:
        ray_serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=host, port=port, keep_alive_timeout_s=math.ceil(keep_alive_timeout)),
        )
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        ray_serve.shutdown()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def deploy(deployment: Deployment, teach: Teach | None = None) -> None:
    """Deploy, or replace what is deployed replica by replica; returns when it answers.

    Raises:
        RuntimeError: it does not come up.
    """
    application = cluster_application(deployment, teach)
    quiet = LoggingConfig(enable_access_log=False)  # the ingress has its own
    ray_serve.run(application, name=APPLICATION, route_prefix="/", logging_config=quiet)


def deploy_to(address: str, deployment: Deployment, teach: Teach | None = None) -> None:
    """Deploy on a Ray cluster that runs, or replace what it has; returns when it answers.

    Raises:
        ConnectionError: there is no cluster at that address.
        RuntimeError: it does not come up.
    """
    configure_logging(deployment.settings.log_level, deployment.settings.log_format)
    _warn_if_open(None, KeyRing(deployment.settings.api))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _show_token()
    ray.init(address=address, log_to_driver=False)
    try:
        deploy(deployment, teach)
    finally:
        ray.shutdown()


def _show_token() -> None:
    """Let `ray.init` show this user's token, for which a Ray that `overtone deploy` started asks.

    With Ray 2.60 that is left to `RAY_AUTH_MODE=token`, which is read when Ray is imported, or to this function of its
    own. One without the function is connected to as it would be anyway.
    """
    with contextlib.suppress(ImportError):
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def serve_here(
    deployment: Deployment, host: str, port: int, on_ready: Callable[[str, str], None], teach: Teach | None = None
) -> None:
    """Deploy on this machine and stay until SIGTERM or SIGINT; what runs then may finish.

    Args:
        deployment: what to serve.
        host: what to listen on.
        port: its port; 0 takes a free one.
        on_ready: called with the server's URL and Ray's address once requests are answered.
        teach: trains the router on a new expert's prompts.
    """
    configure_logging(deployment.settings.log_level, deployment.settings.log_format)
    keys = KeyRing(deployment.settings.api)  # report a mistake in a file before a cluster is started
    keep_alive = deployment.settings.connections.keep_alive_timeout
    with local_ray(host, port, keep_alive) as url:
        with signals_handled_by(_leave):  # Ray has taken SIGTERM for itself
            _warn_if_open(str(socket.getaddrinfo(host, port)[0][4][0]), keys)
            deploy(deployment, teach)
        with told_to_stop() as stop:
            on_ready(url, ray.get_runtime_context().gcs_address)
            stop.wait()
            drain(deployment.settings.shutdown_timeout)
            ray_serve.delete(APPLICATION)


def _warn_if_open(address: str | None, keys: KeyRing) -> None:
    if (warning := open_to_others(address, keys, os.environ)) is not None:
        _log.warning(warning)


def drain(timeout: float) -> None:
    """Let the application refuse new requests, and return once those that run have ended.

    Its replicas and its route stay meanwhile. Once they go, the proxy answers 503 by itself (`serve.cluster.proxy`).
    """
    with contextlib.suppress(RayError, RayServeException, TimeoutError):  # an ingress that is lost has nothing to drain
        ray_serve.get_app_handle(APPLICATION).drain.remote().result(timeout_s=timeout + _DRAIN_MARGIN_SECONDS)


@contextlib.contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """Set by the first SIGTERM or SIGINT; a second one ends the process. To be entered with Ray begun."""
    stop = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            _leave(number, frame)
        stop.set()

    with signals_handled_by(handler):
        yield stop


def _leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - what Python calls a handler with
    """End the process with status 0; what is entered is left."""
    sys.exit(0)


@contextlib.contextmanager
def signals_handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a function handle SIGTERM and SIGINT in this block."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
