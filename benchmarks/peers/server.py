"""A server that runs only while it is measured."""

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from benchmarks.peers.environment import PeerError
from benchmarks.peers.process import FrozenProcess

READY_SECONDS = 300.0


def free_port() -> int:
    """A free TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(FrozenProcess):
    """Ready once a path answers 200."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        url: str,
        probe: str = "/health",
        environment: Mapping[str, str] | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        """Start a server and wait until it is ready.

        Raises:
            PeerError: it ended, or was not ready in time; the message holds its last line.
        """
        self._probe, self._ready_seconds = url + probe, ready_seconds
        super().__init__(name, command, environment, talks=False)

    def _wait(self) -> None:
        deadline = time.monotonic() + self._ready_seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise PeerError(f"{self._name} ended with status {self._process.returncode}: {self._last_line()}")
            try:
                if httpx.get(self._probe, timeout=5.0).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise PeerError(f"{self._name} was not ready after {self._ready_seconds:g} seconds: {self._last_line()}")
