"""`overtone serve`: a bundle behind OpenAI's API."""

from pathlib import Path
from typing import Annotated, cast

import typer

from serve.cli.options import byte_size, option


def command(
    bundle: Annotated[
        Path, typer.Argument(help="The bundle's directory.", envvar="OVERTONE_BUNDLE", show_default=False)
    ],
    host: Annotated[str, option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, option("--port", help="TCP port; 0 takes a free one.")] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        option("--served-model-name", help="Name of the routed model instead of the bundle's; repeatable."),
    ] = None,
    api_key: Annotated[
        list[str] | None, option("--api-key", help="Accepted bearer token; repeatable.", show_envvar=True)
    ] = None,
    max_model_len: Annotated[int | None, option("--max-model-len", help="Longest sequence in tokens.")] = None,
    max_num_seqs: Annotated[int, option("--max-num-seqs", help="Sequences in one batch.")] = 64,
    max_num_batched_tokens: Annotated[int, option("--max-num-batched-tokens", help="Tokens in one step.")] = 2048,
    max_num_queued_reqs: Annotated[int, option("--max-num-queued-reqs", help="Requests that may wait.")] = 1024,
    max_num_queued_tokens: Annotated[
        int | None, option("--max-num-queued-tokens", help="Prompt tokens that may wait.")
    ] = None,
    dtype: Annotated[str, option("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    kv_cache_bytes: Annotated[
        int | None, option("--kv-cache-bytes", help="Memory for keys and values, as in 512MiB.", parser=byte_size)
    ] = None,
    expert_slots: Annotated[int | None, option("--expert-slots", help="Experts on the device at once.")] = None,
    enable_prefix_caching: Annotated[
        bool,
        option("--enable-prefix-caching/--no-enable-prefix-caching", help="Reuse keys and values of equal prefixes."),
    ] = True,
    seed: Annotated[int, option("--seed", help="Seeds the requests that bring none.")] = 0,
    router_threshold: Annotated[
        float | None, option("--router-threshold", help="Confidence below which the backbone answers alone.")
    ] = None,
    shutdown_timeout: Annotated[
        float, option("--shutdown-timeout", help="Seconds that running requests get after SIGTERM.")
    ] = 30.0,
    log_level: Annotated[str, option("--log-level", help="debug, info, warning or error.")] = "info",
    ui: Annotated[bool, option("--ui/--no-ui", help="A page at / to try the model in a browser.")] = True,
) -> None:
    """Serve a bundle behind OpenAI's completions API."""
    from serve.api.server import run  # torch takes a second to import; --help should not
    from serve.config import ApiSettings, LogLevel, ServerSettings
    from serve.engine import EngineConfig

    run(
        ServerSettings(
            bundle=bundle,
            host=host,
            port=port,
            served_model_names=tuple(served_model_name or ()),
            router_threshold=router_threshold,
            shutdown_timeout=shutdown_timeout,
            log_level=cast("LogLevel", log_level),  # checked there
            engine=EngineConfig(
                dtype=dtype,
                device=device,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                max_num_queued_reqs=max_num_queued_reqs,
                max_num_queued_tokens=max_num_queued_tokens,
                kv_cache_bytes=kv_cache_bytes,
                max_expert_slots=expert_slots,
                enable_prefix_caching=enable_prefix_caching,
                seed=seed,
            ),
            api=ApiSettings(api_keys=tuple(api_key or ()), ui=ui),
        )
    )
