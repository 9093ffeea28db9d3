"""The server's settings, layer by layer: HTTP's, and around it the server's with the engine's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from serve.engine.config import EngineConfig
from serve.version import overtone_version

LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True)
class ApiSettings:
    """What the HTTP layer needs to know.

    Attributes:
        api_keys: accepted bearer tokens; none: every request is accepted.
        max_body_bytes: longest request body.
        max_choices: prompts × n in one request.
        version: what /version says.
    """

    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 2**20
    max_choices: int = 256
    version: str = field(default_factory=overtone_version)

    def __post_init__(self) -> None:
        if any(not key or key != key.strip() or not key.isprintable() for key in self.api_keys):
            raise ValueError("an API key is empty, or holds blanks at an end or control characters")
        for name in ("max_body_bytes", "max_choices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class ServerSettings:
    """Everything `overtone serve` needs.

    Attributes:
        bundle: the bundle's directory.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        served_model_names: names of the routed model, instead of the bundle's own.
        router_threshold: the router's confidence below which the backbone answers alone, instead of the trained one.
        shutdown_timeout: seconds that running requests get after SIGTERM before they are aborted.
        log_level: of the server's log on stderr.
        engine: the engine's part.
        api: the HTTP layer's part.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    router_threshold: float | None = None
    shutdown_timeout: float = 30.0
    log_level: LogLevel = "info"
    engine: EngineConfig = field(default_factory=EngineConfig)
    api: ApiSettings = field(default_factory=ApiSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}; it must be from 0 to 65535")
        if not 0 <= self.shutdown_timeout < float("inf"):
            raise ValueError(f"shutdown_timeout is {self.shutdown_timeout}; it must be at least 0 seconds")
        if self.router_threshold is not None and not 0 <= self.router_threshold <= 1:
            raise ValueError(f"router_threshold is {self.router_threshold}; it must be a probability from 0 to 1")
        if self.log_level not in get_args(LogLevel):
            raise ValueError(f"log_level is {self.log_level!r}; it must be one of {', '.join(get_args(LogLevel))}")
        if not all(self.served_model_names):
            raise ValueError("a served model name is empty")
