"""A server in a process group of its own that stands still except while it is measured."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from benchmarks.peers.environment import PeerError

READY_SECONDS = 300.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """Started with a command, ready once a path answers 200, frozen until `awake`, killed at the end."""

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
        self._name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process, closed with it
        self._process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            self._wait(url + probe, ready_seconds)
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        """The process, which leads a group of its own."""
        return self._process.pid

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run within the block."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it and all it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, url: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise PeerError(f"{self._name} ended with status {self._process.returncode}: {self._last_line()}")
            try:
                if httpx.get(url, timeout=5.0).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise PeerError(f"{self._name} was not ready after {seconds:g} seconds: {self._last_line()}")

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
