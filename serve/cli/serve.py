"""`overtone serve`: a bundle, or a model with LoRA adapters, behind OpenAI's API."""

from pathlib import Path
from typing import Annotated

import typer

from serve.cli import server_options as options
from serve.cli.options import option


def command(
    bundle: options.BundleOrModel,
    lora_modules: options.LoraModules = None,
    enable_lora: options.EnableLora = False,
    max_lora_rank: options.MaxLoraRank = None,
    router: options.RouterDirectory = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    served_model_name: options.ServedModelName = None,
    api_key: options.ApiKey = None,
    api_key_file: options.ApiKeyFile = None,
    admin_api_key: options.AdminApiKey = None,
    admin_api_key_file: options.AdminApiKeyFile = None,
    expert_dir: options.ExpertDir = None,
    allowed_origins: options.AllowedOrigins = None,
    max_connections: options.MaxConnections = 4096,
    header_timeout: options.HeaderTimeout = 30.0,
    body_timeout: options.BodyTimeout = 60.0,
    write_timeout: options.WriteTimeout = 60.0,
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
    on_engine_death: options.OnEngineDeath = "exit",
    shutdown_timeout: options.ShutdownTimeout = 30.0,
    log_level: options.LogLevel = "info",
    log_format: options.LogFormat = "text",
    log_prompts: options.LogPrompts = False,
    ui: options.Ui = True,
    ssl_certfile: Annotated[Path | None, option("--ssl-certfile", help="Certificate for HTTPS, PEM.")] = None,
    ssl_keyfile: Annotated[Path | None, option("--ssl-keyfile", help="Its private key.")] = None,
    ssl_keyfile_password: Annotated[str | None, option("--ssl-keyfile-password", help="The key's password.")] = None,
    ssl_ca_certs: Annotated[
        Path | None, option("--ssl-ca-certs", help="Clients must bring a certificate that these sign.")
    ] = None,
) -> None:
    """Serve a bundle, or a model with LoRA adapters, behind OpenAI's API."""
    given = dict(locals())
    from serve.api.server import run  # torch takes a second to import; --help should not
    from serve.config import TlsSettings

    if ssl_certfile is not None:
        given["tls"] = TlsSettings(ssl_certfile, ssl_keyfile, ssl_keyfile_password, ssl_ca_certs)
    elif ssl_keyfile or ssl_keyfile_password or ssl_ca_certs:
        raise typer.BadParameter("HTTPS needs a certificate", param_hint="--ssl-certfile")
    run(options.server_settings(given), teach=options.teach)
