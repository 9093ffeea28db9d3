"""The settings of a server, each stated once: its default, its bounds, and the option and variable that set it.

`server` and `engine` have the settings, `setting` says what makes a field an option; `serve.cli.server_options` makes
the options of `overtone serve` and `overtone deploy` from them.
"""

from serve.config.engine import EngineConfig
from serve.config.server import (
    ADAPTER_NAME,
    ApiSettings,
    ConnectionSettings,
    LogFormat,
    LoraModule,
    ServerSettings,
    TlsSettings,
)

__all__ = [
    "ADAPTER_NAME",
    "ApiSettings",
    "ConnectionSettings",
    "EngineConfig",
    "LogFormat",
    "LoraModule",
    "ServerSettings",
    "TlsSettings",
]
