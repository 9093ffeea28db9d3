"""The options of every command that serves a bundle, and the settings that they make."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve.cli.lora_modules import lora_modules
from serve.cli.options import byte_size, option

if TYPE_CHECKING:
    from merge.bundle import RouterModel
    from serve.config import ServerSettings

SIZE = "<size>"

Bundle = Annotated[Path, typer.Argument(help="The bundle's directory.", envvar="OVERTONE_BUNDLE", show_default=False)]
BundleOrModel = Annotated[
    Path,
    typer.Argument(
        help="The bundle's directory, that of a Hugging Face model, or a GGUF file.",
        envvar="OVERTONE_BUNDLE",
        show_default=False,
    ),
]
LoraModules = Annotated[
    list[str] | None,
    option(
        "--lora-modules",
        help="LoRA adapters to serve as experts: NAME=PATH ..., or JSON with name, path and base_model_name.",
    ),
]
EnableLora = Annotated[
    bool,
    option(
        "--enable-lora/--no-enable-lora",
        help="Make room for adapters that are loaded while the server runs; --lora-modules does so, too.",
    ),
]
MaxLoraRank = Annotated[
    int | None,
    option(
        "--max-lora-rank",
        help="Largest rank of an adapter; 16, or that of the --lora-modules, if not given.",
        show_default=False,
    ),
]
RouterDirectory = Annotated[
    Path | None,
    option("--router", help="Directory of a router, as `overtone router train` writes it, instead of the bundle's."),
]
Host = Annotated[str, option("--host", help="Address to listen on.")]
Port = Annotated[int, option("--port", help="TCP port; 0 takes a free one.")]
ServedModelName = Annotated[
    list[str] | None,
    option("--served-model-name", help="Name of the routed model instead of the bundle's; repeatable."),
]
ApiKey = Annotated[list[str] | None, option("--api-key", help="Accepted bearer token; repeatable.", show_envvar=True)]
ApiKeyFile = Annotated[Path | None, option("--api-key-file", help="More of them, one a line; read again on SIGHUP.")]
AdminApiKey = Annotated[
    list[str] | None, option("--admin-api-key", help="Bearer token that may also change experts; repeatable.")
]
AdminApiKeyFile = Annotated[
    Path | None, option("--admin-api-key-file", help="More of those, one a line; read again on SIGHUP.")
]
ExpertDir = Annotated[
    list[Path] | None, option("--expert-dir", help="Directory that experts may be loaded from; repeatable.")
]
AllowedOrigins = Annotated[
    list[str] | None, option("--allowed-origins", help="Web origin whose pages may call the API; repeatable.")
]
MaxConnections = Annotated[int, option("--max-connections", help="Connections at once; further ones get 503.")]
HeaderTimeout = Annotated[float, option("--header-timeout", help="Seconds in which a request's headers must arrive.")]
BodyTimeout = Annotated[float, option("--body-timeout", help="Seconds in which a request's body must arrive.")]
WriteTimeout = Annotated[
    float, option("--write-timeout", help="Seconds after which a client that reads nothing of its reply is cut off.")
]
KeepAliveTimeout = Annotated[
    float, option("--keep-alive-timeout", help="Seconds that a connection may stay open without a request.")
]
MaxHeaderBytes = Annotated[
    int, option("--max-header-bytes", help="Size of a request's headers, as in 64KiB.", parser=byte_size, metavar=SIZE)
]
RootPath = Annotated[
    str, option("--root-path", help="Prefix that a proxy in front leaves in paths, as in /llm.", show_default=False)
]
AllowPriority = Annotated[
    bool,
    option(
        "--allow-priority/--no-allow-priority",
        help="Let every client, not admin keys alone, be served before others by a negative priority.",
    ),
]
MaxBodyBytes = Annotated[
    int,
    option(
        "--max-body-bytes",
        help="Longest request body, as in 16MiB; it may hold one JSON value per 32 bytes.",
        parser=byte_size,
        metavar=SIZE,
    ),
]
MaxChoices = Annotated[int, option("--max-choices", help="Prompts × candidates in one request.")]
MaxChoicesPerKey = Annotated[
    int | None,
    option("--max-choices-per-key", help="Unfinished choices of one API key at once; no limit if not given."),
]
RequestTimeout = Annotated[
    float | None, option("--request-timeout", help="Seconds that a request may take; no limit if not given.")
]
EngineTimeout = Annotated[
    float,
    option("--engine-timeout", help="Seconds that a step may take before its engine counts as dead; 0: no limit."),
]
OnEngineDeath = Annotated[
    str,
    option(
        "--on-engine-death",
        help="exit: end the process with status 1, for a supervisor to restart it; stay: answer with 503.",
    ),
]
ChatTemplate = Annotated[
    Path | None,
    option("--chat-template", help="Jinja file to take instead of the chat templates of model and experts."),
]
GenerationConfig = Annotated[
    str,
    option(
        "--generation-config",
        help="auto: requests that leave sampling fields out get those that the model's generation_config.json, or the "
        "expert's, recommends; none.",
    ),
]
SsePingSeconds = Annotated[
    float,
    option("--sse-ping-seconds", help="Seconds between comments in a stream while it has nothing to say; 0: none."),
]
ToolCallParser = Annotated[
    str,
    option(
        "--tool-call-parser",
        help="How tool calls are read: auto (by the chat template), hermes, llama3_json, mistral or none.",
    ),
]
ReasoningParser = Annotated[
    str,
    option(
        "--reasoning-parser",
        help="How reasoning between <think> tags is split off as reasoning_content: qwen3, deepseek_r1 or none.",
    ),
]
MaxModelLen = Annotated[int | None, option("--max-model-len", help="Longest sequence in tokens.")]
MaxNumSeqs = Annotated[int, option("--max-num-seqs", help="Sequences in one batch.")]
MaxNumBatchedTokens = Annotated[int, option("--max-num-batched-tokens", help="Tokens in one step.")]
MaxNumQueuedReqs = Annotated[int, option("--max-num-queued-reqs", help="Requests that may wait.")]
MaxNumQueuedTokens = Annotated[int | None, option("--max-num-queued-tokens", help="Prompt tokens that may wait.")]
Dtype = Annotated[str, option("--dtype", help="auto, float32, bfloat16 or float16.")]
Quantization = Annotated[
    str | None,
    option(
        "--quantization",
        help="int8 or int4: round the weights of an unquantised model to so many bits at load, on a CPU. "
        "Embeddings and the head get 8 bits.",
    ),
]
Device = Annotated[str, option("--device", help="auto, cpu, cuda or cuda:N.")]
KvCacheBytes = Annotated[
    int | None,
    option(
        "--kv-cache-bytes",
        help="Memory for keys and values, as in 512MiB. Default: enough for --max-num-seqs sequences of "
        "--max-model-len tokens, at most 30 % of free memory, and on a CPU at most twice the weights or 1 GiB, "
        "whichever is larger.",
        parser=byte_size,
        metavar=SIZE,
    ),
]
ExpertSlots = Annotated[
    int | None, option("--expert-slots", "--max-loras", help="Experts and adapters on the device at once.")
]
MaxExpertHostBytes = Annotated[
    int | None,
    option(
        "--max-expert-host-bytes",
        help="Memory for experts kept ready on the host, 0 for none; 30 % of what is free if not given.",
        parser=byte_size,
        metavar=SIZE,
    ),
]
Patching = Annotated[
    str, option("--patching", help="auto: add an expert that is asked for alone into the weights once that pays; off.")
]
EnablePrefixCaching = Annotated[
    bool,
    option("--enable-prefix-caching/--no-enable-prefix-caching", help="Reuse keys and values of equal prefixes."),
]
EnforceEager = Annotated[
    bool,
    option("--enforce-eager/--no-enforce-eager", help="On a GPU: never capture decoding steps into CUDA graphs."),
]
Seed = Annotated[int, option("--seed", help="Seeds the requests that bring none.")]
RouterThreshold = Annotated[
    float | None, option("--router-threshold", help="Confidence below which the backbone answers alone.")
]
SessionRouting = Annotated[
    bool,
    option(
        "--session-routing/--no-session-routing",
        help="A chat stays with its expert until a message is clearly another's; off: the last message alone decides.",
    ),
]
ShutdownTimeout = Annotated[
    float, option("--shutdown-timeout", help="Seconds that running requests get to finish, as after SIGTERM.")
]
LogLevel = Annotated[str, option("--log-level", help="debug, info, warning or error.")]
LogFormat = Annotated[str, option("--log-format", help="text or json.")]
LogPrompts = Annotated[
    bool, option("--log-prompts/--no-log-prompts", help="Put the text of prompts into the access log.")
]
Ui = Annotated[bool, option("--ui/--no-ui", help="A page at / to try the model in a browser.")]

_FIELDS = {
    "served_model_name": "served_model_names",
    "api_key": "api_keys",
    "admin_api_key": "admin_api_keys",
    "expert_dir": "expert_dirs",
    "expert_slots": "max_expert_slots",
}
"""Option → field, where their names differ: an option is named for the one value that it gives."""


def server_settings(options: Mapping[str, Any]) -> "ServerSettings":
    """The settings that a command's options ask for.

    Args:
        options: the command's arguments by their names; those that are no settings are left out, and settings that
            the command has no option for keep their defaults.

    Raises:
        ValueError: one of them is wrong.
    """
    from serve.config import (
        ApiSettings,
        ConnectionSettings,
        ServerSettings,
    )  # torch takes a second to import; --help should not
    from serve.engine import EngineConfig

    given = {_FIELDS.get(name, name): value for name, value in options.items()}
    if isinstance(path := given.get("bundle"), Path) and path.suffix == ".gguf" and not path.is_dir():
        from merge.gguf import as_directory

        given["bundle"] = as_directory(path, lambda line: typer.echo(line, err=True))
    if given.get("engine_timeout") == 0:
        given["engine_timeout"] = None
    given["lora_modules"] = lora_modules(given.get("lora_modules") or ())
    for name in ("served_model_names", "api_keys", "admin_api_keys", "expert_dirs", "allowed_origins"):
        given[name] = tuple(given.get(name) or ())

    def part(of: type[Any]) -> dict[str, Any]:
        return {field.name: given[field.name] for field in dataclasses.fields(of) if field.name in given}

    return ServerSettings(
        **part(ServerSettings),
        engine=EngineConfig(**part(EngineConfig)),
        api=ApiSettings(**part(ApiSettings)),
        connections=ConnectionSettings(**part(ConnectionSettings)),
    )


def teach(model: "RouterModel", name: str, prompts: Sequence[str]) -> "RouterModel":
    """The router that also knows a new expert, from prompts that it should answer."""
    from merge.router import add_expert

    return add_expert(model, name, prompts, others=())
