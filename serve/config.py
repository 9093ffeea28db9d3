"""The server's settings, layer by layer: HTTP's, and around it the server's with the engine's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from serve.engine.config import EngineConfig
from serve.version import overtone_version

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
OnEngineDeath = Literal["exit", "stay"]


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
        max_body_bytes: longest request body; it may hold one JSON value per 32 bytes. The default has
            room for 256 prompts of 8,192 tokens, each of four bytes.
        max_choices: prompts × candidates in one request.
        request_timeout: seconds that a request may take, None for no limit.
        engine_timeout: seconds that a step may take before the engine counts as dead, None for no limit.
        log_prompts: put the text of prompts into the access log.
        ui: whether there is a page at /.
        examples: prompts that it offers.
        version: what /version says.
    """

    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    admin_api_keys: tuple[str, ...] = ()
    admin_api_key_file: Path | None = None
    expert_dirs: tuple[Path, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 2**20
    max_choices: int = 256
    request_timeout: float | None = None
    engine_timeout: float | None = 600.0
    log_prompts: bool = False
    ui: bool = True
    examples: tuple[str, ...] = ()
    version: str = field(default_factory=overtone_version)

    def __post_init__(self) -> None:
        if any(not key or key != key.strip() or not key.isprintable() for key in self.api_keys + self.admin_api_keys):
            raise ValueError("an API key is empty, or holds blanks at an end or control characters")
        for name in ("max_body_bytes", "max_choices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("request_timeout", "engine_timeout"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be more than 0 seconds, or unset")
        for origin in self.allowed_origins:
            if origin != "*" and ("://" not in origin or origin.endswith("/")):
                raise ValueError(f"allowed_origins has {origin!r}; an origin is like https://example.org, or *")


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


@dataclass(frozen=True)
class ServerSettings:
    """Everything `overtone serve` needs.

    Attributes:
        bundle: the bundle's directory.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        served_model_names: names of the routed model, instead of the bundle's own.
        router_threshold: the router's confidence below which the backbone answers alone, instead of the trained one.
        chat_template: a Jinja file to take instead of the model's own chat template.
        on_engine_death: "exit": end the process with a non-zero status, for a supervisor to restart it; "stay": go on
            to answer probes, with 503.
        shutdown_timeout: seconds that running requests get after SIGTERM before they are aborted.
        log_level: of the server's log on stderr.
        log_format: "text", or "json": one JSON object a line.
        tls: None: plain HTTP.
        engine: the engine's part.
        api: the HTTP layer's part.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    router_threshold: float | None = None
    chat_template: Path | None = None
    on_engine_death: OnEngineDeath = "exit"
    shutdown_timeout: float = 30.0
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    tls: TlsSettings | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    api: ApiSettings = field(default_factory=ApiSettings)

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
        ):
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(words)}")
        if not all(self.served_model_names):
            raise ValueError("a served model name is empty")
