"""`overtone deploy`: a bundle behind OpenAI's API, on several engine replicas under Ray Serve."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from serve.cli.options import byte_size, option

if TYPE_CHECKING:
    from merge.bundle import RouterModel


def command(
    bundle: Annotated[
        Path, typer.Argument(help="The bundle's directory.", envvar="OVERTONE_BUNDLE", show_default=False)
    ],
    replicas: Annotated[int, option("--replicas", help="Engines.", min=1)] = 2,
    max_replicas: Annotated[
        int | None, option("--max-replicas", help="Engines under load; always --replicas if not given.")
    ] = None,
    address: Annotated[
        str | None,
        option("--address", help="Ray cluster to deploy on, or to update; one on this machine if not given."),
    ] = None,
    cpus_per_replica: Annotated[
        float | None, option("--cpus-per-replica", help="Cores reserved for an engine; a fair share if not given.")
    ] = None,
    gpus_per_replica: Annotated[float, option("--gpus-per-replica", help="GPUs reserved for an engine.")] = 0.0,
    host: Annotated[str, option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, option("--port", help="TCP port; 0 takes a free one.")] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        option("--served-model-name", help="Name of the routed model instead of the bundle's; repeatable."),
    ] = None,
    api_key: Annotated[list[str] | None, option("--api-key", help="Accepted bearer token; repeatable.")] = None,
    api_key_file: Annotated[Path | None, option("--api-key-file", help="More of them, one a line.")] = None,
    admin_api_key: Annotated[
        list[str] | None, option("--admin-api-key", help="Bearer token that may also change experts; repeatable.")
    ] = None,
    expert_dir: Annotated[
        list[Path] | None, option("--expert-dir", help="Directory that experts may be loaded from; repeatable.")
    ] = None,
    request_timeout: Annotated[
        float | None, option("--request-timeout", help="Seconds that a request may take; no limit if not given.")
    ] = None,
    engine_timeout: Annotated[
        float | None,
        option("--engine-timeout", help="Seconds that a step may take before its replica is replaced."),
    ] = None,
    max_model_len: Annotated[int | None, option("--max-model-len", help="Longest sequence in tokens.")] = None,
    max_num_seqs: Annotated[int, option("--max-num-seqs", help="Sequences in one batch of an engine.")] = 64,
    max_num_batched_tokens: Annotated[int, option("--max-num-batched-tokens", help="Tokens in one step.")] = 2048,
    max_num_queued_reqs: Annotated[int, option("--max-num-queued-reqs", help="Requests that may wait.")] = 1024,
    dtype: Annotated[str, option("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    kv_cache_bytes: Annotated[
        int | None,
        option("--kv-cache-bytes", help="Memory of each engine for keys and values, as in 512MiB.", parser=byte_size),
    ] = None,
    expert_slots: Annotated[int | None, option("--expert-slots", help="Experts in each engine at once.")] = None,
    seed: Annotated[int, option("--seed", help="Seeds the requests that bring none.")] = 0,
    router_threshold: Annotated[
        float | None, option("--router-threshold", help="Confidence below which the backbone answers alone.")
    ] = None,
    shutdown_timeout: Annotated[
        float, option("--shutdown-timeout", help="Seconds that running requests get when their replica is to go.")
    ] = 30.0,
    log_level: Annotated[str, option("--log-level", help="debug, info, warning or error.")] = "info",
    log_format: Annotated[str, option("--log-format", help="text or json.")] = "text",
    ui: Annotated[bool, option("--ui/--no-ui", help="A page at / to try the model in a browser.")] = True,
) -> None:
    """Serve a bundle on several engines, by Ray Serve (the extra `ray`)."""
    if importlib.util.find_spec("ray") is None:
        raise ImportError("overtone deploy needs Ray: pip install 'overtone[ray]'")
    from merge.bundle import open_bundle  # Ray and torch take seconds to import; --help should not
    from serve.cluster.deployment import Deployment
    from serve.cluster.run import deploy_to, serve_here
    from serve.config import ApiSettings, LogFormat, LogLevel, ServerSettings
    from serve.engine import EngineConfig

    open_bundle(bundle)  # a mistake in the name should be said before a cluster is started
    cores = os.cpu_count() or 1
    share = min(1.0, int(100 * cores / (max_replicas or replicas)) / 100) if address is None else 1.0
    deployment = Deployment(
        settings=ServerSettings(
            bundle=bundle.resolve(),
            host=host,
            port=port,
            served_model_names=tuple(served_model_name or ()),
            router_threshold=router_threshold,
            shutdown_timeout=shutdown_timeout,
            log_level=cast("LogLevel", log_level),  # checked there
            log_format=cast("LogFormat", log_format),
            engine=EngineConfig(
                dtype=dtype,
                device=device,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                max_num_queued_reqs=max_num_queued_reqs,
                kv_cache_bytes=kv_cache_bytes,
                max_expert_slots=expert_slots,
                seed=seed,
            ),
            api=ApiSettings(
                ui=ui,
                api_keys=tuple(api_key or ()),
                api_key_file=api_key_file,
                admin_api_keys=tuple(admin_api_key or ()),
                expert_dirs=tuple(expert_dir or ()),
                request_timeout=request_timeout,
                engine_timeout=engine_timeout,
            ),
        ),
        replicas=replicas,
        max_replicas=max_replicas,
        cpus=share if cpus_per_replica is None else cpus_per_replica,
        gpus=gpus_per_replica,
    )

    def show(url: str, ray_address: str) -> None:
        typer.echo(f"serving {bundle} on {url}", err=True)
        typer.echo(f"to replace the bundle: overtone deploy OTHER_BUNDLE --address {ray_address}", err=True)

    if address is None:
        serve_here(deployment, host, port, show, _teach)
    else:
        deploy_to(address, deployment, _teach)
        typer.echo(f"{bundle} is deployed", err=True)


def _teach(model: "RouterModel", name: str, prompts: Sequence[str]) -> "RouterModel":
    from merge.router import add_expert

    return add_expert(model, name, prompts, others=())
