"""The server's settings, layer by layer: HTTP's, the connections', and around them the server's with the engine's."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from serve.config.engine import EngineConfig
from serve.config.setting import check_settings, setting
from serve.version import overtone_version

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
OnEngineDeath = Literal["exit", "stay"]
GenerationConfig = Literal["auto", "none"]
ToolCallParser = Literal["auto", "hermes", "llama3_json", "mistral", "none"]
ReasoningParser = Literal["deepseek_r1", "qwen3", "none"]


@dataclass(frozen=True)
class ApiSettings:
    """What the HTTP layer needs to know. The help of each option describes its field."""

    api_keys: tuple[str, ...] = setting((), "Accepted bearer token; repeatable.", "--api-key", repeatable=True)
    """Without a key here or in the file, every request is accepted."""
    api_key_file: Path | None = setting(
        None, "File with more API keys, one on each line; `overtone serve` reads it again on SIGHUP."
    )
    admin_api_keys: tuple[str, ...] = setting(
        (), "Bearer token that may also change experts; repeatable.", "--admin-api-key", repeatable=True
    )
    """Without a key here or in the file, experts cannot be changed."""
    admin_api_key_file: Path | None = setting(
        None, "File with more admin keys, one on each line; `overtone serve` reads it again on SIGHUP."
    )
    expert_dirs: tuple[Path, ...] = setting(
        (), "Directory that experts may be loaded from; repeatable.", "--expert-dir", repeatable=True
    )
    allowed_origins: tuple[str, ...] = setting(
        (), "Web origin whose pages may call the API, for example https://example.org; repeatable.", repeatable=True
    )
    """None: CORS is off."""
    body_timeout: float = setting(60.0, "Seconds in which a request's body must arrive.", seconds=True)
    max_header_bytes: int = setting(64 * 2**10, "Size of a request's headers, as in 64KiB.", size=True, least=1024)
    max_body_bytes: int = setting(
        8 * 2**20,
        "Longest request body, as in 16MiB; it may hold one JSON value per 32 bytes.",
        size=True,
        least=1,
    )
    """The default has room for 256 prompts of 8,192 tokens, each of four bytes."""
    root_path: str = setting("", "Prefix that a proxy in front leaves in paths, as in /llm.", show_default=False)
    sse_ping_seconds: float = setting(
        15.0, "Seconds between comments in a stream while there is nothing to send; 0: none."
    )
    allow_priority: bool = setting(
        False, "Let every client, not admin keys alone, be served before others by a negative priority."
    )
    max_choices: int = setting(256, "Prompts × candidates in one request.", least=1)
    max_choices_per_key: int | None = setting(
        None, "Unfinished choices of one API key at once; no limit if not given.", least=1
    )
    request_timeout: float | None = setting(
        None, "Seconds that a request may take; no limit if not given.", seconds=True
    )
    engine_timeout: float | None = setting(
        600.0, "Seconds that a step may take before its engine counts as dead; 0: no limit.", seconds=True
    )
    """None: no limit."""
    log_prompts: bool = setting(False, "Put the text of prompts into the access log.")
    ui: bool = setting(True, "A page at / to try the model in a browser.")
    ui_chat: bool = True
    """Whether the page chats, or has each message completed by itself."""
    examples: tuple[str, ...] = ()
    """Messages that the page offers."""
    version: str = field(default_factory=overtone_version)
    """What /version says."""

    def __post_init__(self) -> None:
        check_settings(self)
        if any(not key or key != key.strip() or not key.isprintable() for key in self.api_keys + self.admin_api_keys):
            raise ValueError("an API key is empty, or has blanks at an end or control characters")
        if not 0 <= self.sse_ping_seconds < float("inf"):
            raise ValueError(f"sse_ping_seconds is {self.sse_ping_seconds}; it must be at least 0 (0: none)")
        if self.root_path and (self.root_path[0] != "/" or self.root_path[-1] == "/" or "%" in self.root_path):
            raise ValueError(f"root_path is {self.root_path!r}; it must begin with / and not end with it, as in /llm")
        for origin in self.allowed_origins:
            if origin != "*" and ("://" not in origin or origin.endswith("/")):
                raise ValueError(f"allowed_origins has {origin!r}; an origin is like https://example.org, or *")


@dataclass(frozen=True)
class ConnectionSettings:
    """Bounds on connections. Under Ray Serve they are its proxy's."""

    max_connections: int = setting(4096, "Connections at once; further ones get 503.", least=1)
    header_timeout: float = setting(30.0, "Seconds in which a request's headers must arrive.", seconds=True)
    """From their first byte on."""
    write_timeout: float = setting(
        60.0, "Seconds after which a client that reads nothing of its reply is cut off.", seconds=True
    )
    keep_alive_timeout: float = setting(
        75.0, "Seconds that a connection may stay open without a request.", seconds=True
    )
    """Longer than clients and balancers usually keep an idle connection, so that they close it: a connection that the
    server closes while a request is on its way loses the request."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class TlsSettings:
    """Files for HTTPS, in PEM."""

    certfile: Path = setting(dataclasses.MISSING, "Certificate for HTTPS, PEM.", "--ssl-certfile")
    """With the certificates between it and the root."""
    keyfile: Path | None = setting(None, "Private key of the certificate.", "--ssl-keyfile")
    """None: it is in `certfile`."""
    keyfile_password: str | None = setting(None, "Password of the private key.", "--ssl-keyfile-password")
    ca_certs: Path | None = setting(
        None, "CA certificates: clients must send a certificate signed by one of them.", "--ssl-ca-certs"
    )


ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
"""What a LoRA adapter may be called: vLLM's users name them as the Hub does, `owner/name`."""


@dataclass(frozen=True)
class LoraModule:
    """A LoRA adapter to serve.

    Attributes:
        name: how requests ask for it.
        path: its directory, as PEFT writes it.
        base_model_name: what /v1/models says its parent is; None: the served model.
    """

    name: str
    path: Path
    base_model_name: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(ADAPTER_NAME, self.name):
            raise ValueError(
                f"{self.name!r} cannot name an adapter: a name has 1 to 128 letters, digits and any of . _ : / -, and "
                "begins with a letter or a digit"
            )


@dataclass(frozen=True)
class ServerSettings:
    """Everything `overtone serve` needs. The help of each option describes its field.

    Attributes:
        bundle: the bundle's directory, or a Hugging Face model directory in place of one.
        tls: None: plain HTTP.
        engine: the engine's part.
        api: the HTTP layer's part.
        connections: bounds on connections.
    """

    bundle: Path
    lora_modules: tuple[LoraModule, ...] = setting(
        (),
        "LoRA adapters to serve as experts: NAME=PATH ..., or JSON with name, path and base_model_name.",
        repeatable=True,
    )
    router: Path | None = setting(
        None, "Directory of a router, as `overtone router train` writes it, instead of the bundle's."
    )
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8000, "TCP port; 0 takes a free one.")
    served_model_names: tuple[str, ...] = setting(
        (), "Name of the routed model instead of the bundle's; repeatable.", "--served-model-name", repeatable=True
    )
    router_threshold: float | None = setting(
        None, "Confidence below which the backbone answers alone; the router's own if not given."
    )
    """None: the trained one."""
    session_routing: bool = setting(
        True,
        "A chat stays with its expert until a message clearly belongs to another; off: only the last message counts.",
    )
    chat_template: Path | None = setting(None, "Jinja file to use instead of the chat templates of model and experts.")
    on_engine_death: OnEngineDeath = setting(
        "exit",
        "exit: end the process with status 1, for a supervisor to restart it; stay: answer with 503.",
        words=get_args(OnEngineDeath),
    )
    generation_config: GenerationConfig = setting(
        "auto",
        "auto: requests without sampling fields use the values of the model's generation_config.json, or the expert's; "
        "none: they use the API's defaults.",
        words=get_args(GenerationConfig),
    )
    tool_call_parser: ToolCallParser = setting(
        "auto",
        "How tool calls are read: auto (by the chat template), hermes, llama3_json, mistral or none.",
        words=get_args(ToolCallParser),
    )
    reasoning_parser: ReasoningParser = setting(
        "none",
        "How reasoning between <think> tags is split off as reasoning_content: qwen3, deepseek_r1 or none.",
        words=get_args(ReasoningParser),
    )
    shutdown_timeout: float = setting(30.0, "Seconds that running requests get to finish, as after SIGTERM.")
    log_level: LogLevel = setting("info", "debug, info, warning or error.", words=get_args(LogLevel))
    log_format: LogFormat = setting("text", "text or json.", words=get_args(LogFormat))
    """Of the server's log on stderr; "json": one JSON object a line."""
    tls: TlsSettings | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    api: ApiSettings = field(default_factory=ApiSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}; it must be from 0 to 65535")
        if not 0 <= self.shutdown_timeout < float("inf"):
            raise ValueError(f"shutdown_timeout is {self.shutdown_timeout}; it must be at least 0 seconds")
        if self.router_threshold is not None and not 0 <= self.router_threshold <= 1:
            raise ValueError(f"router_threshold is {self.router_threshold}; it must be a probability from 0 to 1")
        if not all(self.served_model_names):
            raise ValueError("a served model name is empty")
