"""A process group that stands still except while it is measured."""

import os
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self


class FrozenProcess(ABC):
    """Started with a command, frozen until `awake`, killed at the end with all that it started.

    A server that idles still polls, which on few cores changes the figures of the server that is measured meanwhile.
    """

    def __init__(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None, talks: bool
    ) -> None:
        """Start it and wait until it is ready.

        Args:
            name: for messages.
            command: the program and its arguments.
            environment: variables beside those of this process.
            talks: whether stdin and stdout are pipes; otherwise what it prints goes to its log.

        Raises:
            PeerError: it ended before it was ready.
        """
        self._name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process, closed with it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else self._log,
            stderr=self._log,
            text=True,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        """The process, which leads its process group."""
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
        self._process.communicate()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _wait(self) -> None:
        """Return once it is ready, or raise PeerError."""

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
