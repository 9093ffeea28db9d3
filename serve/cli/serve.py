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
    api_key_file: Annotated[
        Path | None, option("--api-key-file", help="More of them, one a line; read again on SIGHUP.")
    ] = None,
    admin_api_key: Annotated[
        list[str] | None, option("--admin-api-key", help="Bearer token that may also change experts; repeatable.")
    ] = None,
    admin_api_key_file: Annotated[
        Path | None, option("--admin-api-key-file", help="More of those, one a line; read again on SIGHUP.")
    ] = None,
    expert_dir: Annotated[
        list[Path] | None, option("--expert-dir", help="Directory that experts may be loaded from; repeatable.")
    ] = None,
    allowed_origins: Annotated[
        list[str] | None, option("--allowed-origins", help="Web origin whose pages may call the API; repeatable.")
    ] = None,
    max_body_bytes: Annotated[
        int, option("--max-body-bytes", help="Longest request body, as in 16MiB.", parser=byte_size)
    ] = 16 * 2**20,
    max_choices: Annotated[int, option("--max-choices", help="Prompts × candidates in one request.")] = 256,
    request_timeout: Annotated[
        float | None, option("--request-timeout", help="Seconds that a request may take; no limit if not given.")
    ] = None,
    engine_timeout: Annotated[
        float | None,
        option("--engine-timeout", help="Seconds that a step may take before /health fails; no limit if not given."),
    ] = None,
    chat_template: Annotated[
        Path | None, option("--chat-template", help="Jinja file to take instead of the model's own chat template.")
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
    log_format: Annotated[str, option("--log-format", help="text or json.")] = "text",
    log_prompts: Annotated[
        bool, option("--log-prompts/--no-log-prompts", help="Put the text of prompts into the access log.")
    ] = False,
    ssl_certfile: Annotated[Path | None, option("--ssl-certfile", help="Certificate for HTTPS, PEM.")] = None,
    ssl_keyfile: Annotated[Path | None, option("--ssl-keyfile", help="Its private key.")] = None,
    ssl_keyfile_password: Annotated[str | None, option("--ssl-keyfile-password", help="The key's password.")] = None,
    ssl_ca_certs: Annotated[
        Path | None, option("--ssl-ca-certs", help="Clients must bring a certificate that these sign.")
    ] = None,
) -> None:
    """Serve a bundle behind OpenAI's API."""
    from merge.router import add_expert  # torch takes a second to import; --help should not
    from serve.api.server import run
    from serve.config import ApiSettings, LogFormat, LogLevel, ServerSettings, TlsSettings
    from serve.engine import EngineConfig

    if ssl_certfile is None and (ssl_keyfile or ssl_keyfile_password or ssl_ca_certs):
        raise typer.BadParameter("HTTPS needs a certificate", param_hint="--ssl-certfile")
    tls = None
    if ssl_certfile is not None:
        tls = TlsSettings(ssl_certfile, ssl_keyfile, ssl_keyfile_password, ssl_ca_certs)
    run(
        ServerSettings(
            bundle=bundle,
            host=host,
            port=port,
            served_model_names=tuple(served_model_name or ()),
            router_threshold=router_threshold,
            chat_template=chat_template,
            shutdown_timeout=shutdown_timeout,
            log_level=cast("LogLevel", log_level),  # checked there
            log_format=cast("LogFormat", log_format),
            tls=tls,
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
            api=ApiSettings(
                ui=ui,
                api_keys=tuple(api_key or ()),
                api_key_file=api_key_file,
                admin_api_keys=tuple(admin_api_key or ()),
                admin_api_key_file=admin_api_key_file,
                expert_dirs=tuple(expert_dir or ()),
                allowed_origins=tuple(allowed_origins or ()),
                max_body_bytes=max_body_bytes,
                max_choices=max_choices,
                request_timeout=request_timeout,
                engine_timeout=engine_timeout,
                log_prompts=log_prompts,
            ),
        ),
        teach=lambda model, name, prompts: add_expert(model, name, prompts, others=()),
    )
