"""The server's settings, layer by layer: HTTP's, and around it the server's with the engine's."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from serve.engine.config import EngineConfig
from serve.version import overtone_version

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
OnEngineDeath = Literal["exit", "stay"]
GenerationConfig = Literal["auto", "none"]
ToolCallParser = Literal["auto", "hermes", "llama3_json", "mistral", "none"]
ReasoningParser = Literal["deepseek_r1", "qwen3", "none"]


@dataclass(frozen=True)
class ApiSettings:
    """What the HTTP layer needs to know.

    Attributes:
        api_keys: accepted bearer tokens; none here or in the file: every request is accepted.
        api_key_file: a file of more, one a line, read again on SIGHUP.
        admin_api_keys: bearer tokens that may also load and unload experts; none here or in the file: nobody may.
        admin_api_key_file: a file of more of those.
        expert_dirs: directories that experts may be loaded from.
        allowed_origins: web origins whose pages may call the API; none: CORS is off.
        max_header_bytes: size of a request's headers.
        max_body_bytes: longest request body; it may hold one JSON value per 32 bytes. The default has
            room for 256 prompts of 8,192 tokens, each of four bytes.
        body_timeout: seconds in which a request's body must arrive.
        root_path: prefix of all paths that a proxy in front of the server may leave in, as in /llm.
        sse_ping_seconds: between comments in a stream of events that has nothing to say, 0 for none.
        allow_priority: whether every client may be served before others by a negative priority, not admin keys alone.
        max_choices: prompts × candidates in one request.
        max_choices_per_key: unfinished choices of one key's requests, None for no limit.
        request_timeout: seconds that a request may take, None for no limit.
        engine_timeout: seconds that a step may take before the engine counts as dead, None for no limit.
        log_prompts: put the text of prompts into the access log.
        ui: whether there is a page at /.
        ui_chat: whether it chats, or has each message completed by itself.
        examples: messages that it offers.
        version: what /version says.
    """

    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    admin_api_keys: tuple[str, ...] = ()
    admin_api_key_file: Path | None = None
    expert_dirs: tuple[Path, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_header_bytes: int = 64 * 2**10
    max_body_bytes: int = 8 * 2**20
    body_timeout: float = 60.0
    root_path: str = ""
    sse_ping_seconds: float = 15.0
    allow_priority: bool = False
    max_choices: int = 256
    max_choices_per_key: int | None = None
    request_timeout: float | None = None
    engine_timeout: float | None = 600.0
    log_prompts: bool = False
    ui: bool = True
    ui_chat: bool = True
    examples: tuple[str, ...] = ()
    version: str = field(default_factory=overtone_version)

    def __post_init__(self) -> None:
        if any(not key or key != key.strip() or not key.isprintable() for key in self.api_keys + self.admin_api_keys):
            raise ValueError("an API key is empty, or holds blanks at an end or control characters")
        for name, least in (("max_header_bytes", 1024), ("max_body_bytes", 1), ("max_choices", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("request_timeout", "engine_timeout"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be more than 0 seconds, or unset")
        if self.max_choices_per_key is not None and self.max_choices_per_key < 1:
            raise ValueError(f"max_choices_per_key is {self.max_choices_per_key}; it must be at least 1, or unset")
        _check_seconds("body_timeout", self.body_timeout)
        if not 0 <= self.sse_ping_seconds < float("inf"):
            raise ValueError(f"sse_ping_seconds is {self.sse_ping_seconds}; it must be at least 0 (0: none)")
        if self.root_path and (self.root_path[0] != "/" or self.root_path[-1] == "/" or "%" in self.root_path):
            raise ValueError(f"root_path is {self.root_path!r}; it must begin with / and not end with it, as in /llm")
        for origin in self.allowed_origins:
            if origin != "*" and ("://" not in origin or origin.endswith("/")):
                raise ValueError(f"allowed_origins has {origin!r}; an origin is like https://example.org, or *")


@dataclass(frozen=True)
class ConnectionSettings:
    """Bounds on connections. Under Ray Serve they are its proxy's.

    Attributes:
        max_connections: at once; further ones get 503.
        header_timeout: seconds in which a request's headers must arrive, from their first byte on.
        write_timeout: seconds after which a connection is closed whose client takes nothing of its reply.
        keep_alive_timeout: seconds that a connection may stay open without a request.
    """

    max_connections: int = 4096
    header_timeout: float = 30.0
    write_timeout: float = 60.0
    keep_alive_timeout: float = 75.0
    """Longer than clients and balancers usually keep an idle connection, so that it is they who close it: a connection
    that the server closes while a request is on its way loses the request."""

    def __post_init__(self) -> None:
        if self.max_connections < 1:
            raise ValueError(f"max_connections is {self.max_connections}; it must be at least 1")
        for name in ("header_timeout", "write_timeout", "keep_alive_timeout"):
            _check_seconds(name, getattr(self, name))


def _check_seconds(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; it must be more than 0 seconds")


@dataclass(frozen=True)
class TlsSettings:
    """Files for HTTPS, in PEM.

    Attributes:
        certfile: the certificate, with those between it and the root.
        keyfile: its private key; None: it is in `certfile`.
        keyfile_password: the key's.
        ca_certs: where given, clients must bring a certificate that these sign.
    """

    certfile: Path
    keyfile: Path | None = None
    keyfile_password: str | None = None
    ca_certs: Path | None = None


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
    """Everything `overtone serve` needs.

    Attributes:
        bundle: the bundle's directory, or a Hugging Face model directory in place of one.
        lora_modules: LoRA adapters of the bundle's backbone, or of that model, to serve as experts.
        router: directory of a router to take instead of the bundle's own.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        served_model_names: names of the routed model, instead of the bundle's own.
        router_threshold: the router's confidence below which the backbone answers alone, instead of the trained one.
        session_routing: whether a chat stays with its expert until a message is clearly another's.
        chat_template: a Jinja file to take instead of the model's own chat template.
        on_engine_death: "exit": end the process with a non-zero status, for a supervisor to restart it; "stay": go on
            to answer probes, with 503.
        generation_config: "auto": requests that leave sampling fields out get what the model's generation_config.json
            recommends; "none": the API's defaults.
        tool_call_parser: how tool calls are read: "auto", by the model's chat template; "hermes", "llama3_json",
            "mistral"; or "none".
        reasoning_parser: how reasoning is split off: "qwen3", "deepseek_r1"; or "none", it stays in the content.
        shutdown_timeout: seconds that running requests get after SIGTERM before they are aborted.
        log_level: of the server's log on stderr.
        log_format: "text", or "json": one JSON object a line.
        tls: None: plain HTTP.
        engine: the engine's part.
        api: the HTTP layer's part.
        connections: bounds on connections.
    """

    bundle: Path
    lora_modules: tuple[LoraModule, ...] = ()
    router: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    router_threshold: float | None = None
    session_routing: bool = True
    chat_template: Path | None = None
    on_engine_death: OnEngineDeath = "exit"
    generation_config: GenerationConfig = "auto"
    tool_call_parser: ToolCallParser = "auto"
    reasoning_parser: ReasoningParser = "none"
    shutdown_timeout: float = 30.0
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    tls: TlsSettings | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    api: ApiSettings = field(default_factory=ApiSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}; it must be from 0 to 65535")
        if not 0 <= self.shutdown_timeout < float("inf"):
            raise ValueError(f"shutdown_timeout is {self.shutdown_timeout}; it must be at least 0 seconds")
        if self.router_threshold is not None and not 0 <= self.router_threshold <= 1:
            raise ValueError(f"router_threshold is {self.router_threshold}; it must be a probability from 0 to 1")
        for name, words in (
            ("log_level", get_args(LogLevel)),
            ("log_format", get_args(LogFormat)),
            ("on_engine_death", get_args(OnEngineDeath)),
            ("generation_config", get_args(GenerationConfig)),
            ("tool_call_parser", get_args(ToolCallParser)),
            ("reasoning_parser", get_args(ReasoningParser)),
        ):
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(words)}")
        if not all(self.served_model_names):
            raise ValueError("a served model name is empty")
