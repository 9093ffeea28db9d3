"""Connections and the limit on open files: as many as fit, and a log line if accepting one fails."""

import asyncio
import logging
import resource
from pathlib import Path
from typing import Any

SPARE_CONNECTIONS = 8
"""Connections over the limit that are kept for a moment: probes are answered on them, and other requests get 503."""

ACCEPTS = 8
"""Connections that are accepted in a row before any of them is handled."""

_OTHER_FILES = 16
"""What the server itself may open besides: files of experts, the tokenizer, sockets of a trace exporter."""

_OUT_OF_FILES = "socket.accept() out of system resource"
"""asyncio's message if a connection cannot be accepted for lack of files or memory; it tries again after a second."""

_SECONDS_BETWEEN_LINES = 10.0

_log = logging.getLogger("overtone")


def connections_that_fit(wanted: int) -> int:
    """Raise this process' soft limit on open files as far as `wanted` connections need it and the hard limit allows.

    Returns:
        How many connections fit: `wanted`, or fewer, which the log says.
    """
    reserved = _open_files() + SPARE_CONNECTIONS + ACCEPTS + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + reserved:
        raised = wanted + reserved if hard == resource.RLIM_INFINITY else min(wanted + reserved, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError) as error:
            _log.debug("the limit on open files remains %d: %s", soft, error)
    fitting = wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - reserved))
    if fitting < wanted:
        _log.warning(
            "%d connections fit into the limit of %d open files, not the %d of --max-connections; raise the limit "
            "(ulimit -n, LimitNOFILE=)",
            *(fitting, soft, wanted),
        )
    return fitting


def _open_files() -> int:
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:  # no /proc
        return 32


class AcceptErrors:
    """An event loop's exception handler that logs failed accepts every ten seconds, not at every try."""

    def __init__(self) -> None:
        self._logged = -_SECONDS_BETWEEN_LINES

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log one line, or leave the context to asyncio."""
        if context.get("message") != _OUT_OF_FILES:
            loop.default_exception_handler(context)
            return
        if (now := loop.time()) - self._logged >= _SECONDS_BETWEEN_LINES:
            self._logged = now
            _log.error(
                "connections cannot be accepted: %s; raise the limit on open files (ulimit -n, LimitNOFILE=) or lower "
                "--max-connections",
                context.get("exception"),
            )
