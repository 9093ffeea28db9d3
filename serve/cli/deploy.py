"""`overtone deploy`: a bundle behind OpenAI's API, on several engine replicas under Ray Serve."""

import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.cli.options import option
from serve.cli.server_options import SETTINGS, Bundle, server_settings, teach, with_settings
from serve.config import TlsSettings

_LOOPBACK = ("127.", "localhost:", "[::1]")

OF_ONE_PROCESS = (
    *("lora_modules", "enable_lora", "max_lora_rank", "router", "on_engine_death"),
    *("max_connections", "header_timeout", "write_timeout"),
)
"""Settings of `overtone serve` that replicas do not have; connections and TLS are those of Ray Serve's proxy."""


@with_settings(*(of for of in SETTINGS if of is not TlsSettings), without=OF_ONE_PROCESS)
def command(
    bundle: Bundle,
    replicas: Annotated[int, option("--replicas", help="Number of engines.", min=1)] = 2,
    max_replicas: Annotated[
        int | None, option("--max-replicas", help="Largest number of engines under load; --replicas if not given.")
    ] = None,
    address: Annotated[
        str | None,
        option(
            "--address", help="Ray cluster to deploy to, or to update. Without it a cluster is started on this machine."
        ),
    ] = None,
    cpus_per_replica: Annotated[
        float | None, option("--cpus-per-replica", help="Cores reserved for each engine; an equal share if not given.")
    ] = None,
    gpus_per_replica: Annotated[float, option("--gpus-per-replica", help="GPUs reserved for each engine.")] = 0.0,
    **options: Any,
) -> None:
    """Serve a bundle on several engines, by Ray Serve (the extra `ray`). Limits are each engine's."""
    given = {name: _absolute(value) for name, value in {"bundle": bundle, **options}.items()}
    if importlib.util.find_spec("ray") is None:
        raise ImportError("overtone deploy needs Ray: pip install 'overtone[ray]'")
    if address is None or address.startswith(_LOOPBACK):
        # Ray reads it when it is imported. All ports of a cluster that is started then listen on the loopback address
        # only, and it can be connected to by that.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from merge.bundle import open_bundle  # Ray and torch take seconds to import; --help should not
    from serve.cluster.deployment import Deployment
    from serve.cluster.run import deploy_to, serve_here

    open_bundle(bundle)  # a mistake in the name should be reported before a cluster is started
    cores = os.cpu_count() or 1
    share = min(1.0, int(100 * cores / (max_replicas or replicas)) / 100) if address is None else 1.0
    deployment = Deployment(
        settings=server_settings(given),
        replicas=replicas,
        max_replicas=max_replicas,
        cpus=share if cpus_per_replica is None else cpus_per_replica,
        gpus=gpus_per_replica,
    )

    def show(url: str, ray_address: str) -> None:
        typer.echo(f"serving {bundle} on {url}", err=True)
        typer.echo(f"to replace the bundle: overtone deploy OTHER_BUNDLE --address {ray_address}", err=True)

    if address is None:
        serve_here(deployment, given["host"], given["port"], show, teach)
    else:
        deploy_to(address, deployment, teach)
        typer.echo(f"{bundle} is deployed", err=True)


def _absolute(value: Any) -> Any:
    """Paths as the cluster's processes need them, which work in other directories."""
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    return value.resolve() if isinstance(value, Path) else value
