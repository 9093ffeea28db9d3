"""A peer in a process of its own that answers questions line by line, and is frozen while others are measured."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers.environment import PeerError


class Worker:
    """One JSON document a line each way; the process group stands still except while it is asked.

    A server that idles still polls, and on few cores that is seen in the figures of whoever is measured meanwhile.
    """

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Start a peer and wait until it has said that it is ready.

        Args:
            name: for messages.
            command: prints one line when it is ready, then one for each line it reads.
            environment: variables beside those of this process.

        Raises:
            PeerError: it ended before it was ready.
        """
        self._name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process, closed with it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            self._read()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        """The process, which leads a group of its own."""
        return self._process.pid

    def ask(self, question: Mapping[str, Any]) -> Any:
        """Send a question and wait for its answer.

        Raises:
            PeerError: the process ended, or answered with an error.
        """
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return self._read()
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process and all it started."""
        self._signal(signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> Any:
        """The next line that is JSON: libraries print to stdout, too."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    raise PeerError(f"{self._name}: {answer['error']}")
                return answer
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["no message"]
        raise PeerError(f"{self._name} ended with status {status}: {lines[-1]}")

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
