"""`overtone deploy`: a bundle behind OpenAI's API, on several engine replicas under Ray Serve."""

import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.cli import server_options as options
from serve.cli.options import option

_LOOPBACK = ("127.", "localhost:", "[::1]")


def command(
    bundle: options.Bundle,
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
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    served_model_name: options.ServedModelName = None,
    api_key: options.ApiKey = None,
    api_key_file: Annotated[Path | None, option("--api-key-file", help="More of them, one a line.")] = None,
    admin_api_key: options.AdminApiKey = None,
    admin_api_key_file: Annotated[
        Path | None, option("--admin-api-key-file", help="More of those, one a line.")
    ] = None,
    expert_dir: options.ExpertDir = None,
    allowed_origins: options.AllowedOrigins = None,
    body_timeout: options.BodyTimeout = 60.0,
    keep_alive_timeout: options.KeepAliveTimeout = 75.0,
    max_header_bytes: options.MaxHeaderBytes = 64 * 2**10,
    max_body_bytes: options.MaxBodyBytes = 8 * 2**20,
    root_path: options.RootPath = "",
    sse_ping_seconds: options.SsePingSeconds = 15.0,
    allow_priority: options.AllowPriority = False,
    max_choices: options.MaxChoices = 256,
    max_choices_per_key: options.MaxChoicesPerKey = None,
    request_timeout: options.RequestTimeout = None,
    engine_timeout: options.EngineTimeout = 600.0,
    chat_template: options.ChatTemplate = None,
    generation_config: options.GenerationConfig = "auto",
    tool_call_parser: options.ToolCallParser = "auto",
    reasoning_parser: options.ReasoningParser = "none",
    max_model_len: options.MaxModelLen = None,
    max_num_seqs: options.MaxNumSeqs = 64,
    max_num_batched_tokens: options.MaxNumBatchedTokens = 2048,
    max_num_queued_reqs: options.MaxNumQueuedReqs = 1024,
    max_num_queued_tokens: options.MaxNumQueuedTokens = None,
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    device: options.Device = "auto",
    kv_cache_bytes: options.KvCacheBytes = None,
    expert_slots: options.ExpertSlots = None,
    max_expert_host_bytes: options.MaxExpertHostBytes = None,
    patching: options.Patching = "off",
    enable_prefix_caching: options.EnablePrefixCaching = True,
    enforce_eager: options.EnforceEager = False,
    seed: options.Seed = 0,
    router_threshold: options.RouterThreshold = None,
    session_routing: options.SessionRouting = True,
    shutdown_timeout: options.ShutdownTimeout = 30.0,
    log_level: options.LogLevel = "info",
    log_format: options.LogFormat = "text",
    log_prompts: options.LogPrompts = False,
    ui: options.Ui = True,
) -> None:
    """Serve a bundle on several engines, by Ray Serve (the extra `ray`). Limits are each engine's."""
    given = {name: _absolute(value) for name, value in locals().items()}
    if importlib.util.find_spec("ray") is None:
        raise ImportError("overtone deploy needs Ray: pip install 'overtone[ray]'")
    if address is None or address.startswith(_LOOPBACK):
        # Ray reads it when it is imported. All ports of a cluster that is started then listen on the loopback address
        # only, and it can be connected to by that.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from merge.bundle import open_bundle  # Ray and torch take seconds to import; --help should not
    from serve.cluster.deployment import Deployment
    from serve.cluster.run import deploy_to, serve_here

    open_bundle(bundle)  # a mistake in the name should be said before a cluster is started
    cores = os.cpu_count() or 1
    share = min(1.0, int(100 * cores / (max_replicas or replicas)) / 100) if address is None else 1.0
    deployment = Deployment(
        settings=options.server_settings(given),
        replicas=replicas,
        max_replicas=max_replicas,
        cpus=share if cpus_per_replica is None else cpus_per_replica,
        gpus=gpus_per_replica,
    )

    def show(url: str, ray_address: str) -> None:
        typer.echo(f"serving {bundle} on {url}", err=True)
        typer.echo(f"to replace the bundle: overtone deploy OTHER_BUNDLE --address {ray_address}", err=True)

    if address is None:
        serve_here(deployment, host, port, show, options.teach)
    else:
        deploy_to(address, deployment, options.teach)
        typer.echo(f"{bundle} is deployed", err=True)


def _absolute(value: Any) -> Any:
    """Paths as the cluster's processes need them, which work in other directories."""
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    return value.resolve() if isinstance(value, Path) else value
