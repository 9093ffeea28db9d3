"""A peer in a separate process that answers questions line by line."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import PeerError
from benchmarks.peers.process import FrozenProcess


class Worker(FrozenProcess):
    """One JSON document a line each way; it runs only while it is asked."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Start a peer and wait until it has said that it is ready.

        Args:
            name: for messages.
            command: prints one line when it is ready, then one for each line it reads.
            environment: variables beside those of this process.

        Raises:
            PeerError: it ended before it was ready.
        """
        super().__init__(name, command, environment, talks=True)

    def ask(self, question: Mapping[str, Any]) -> Any:
        """Send a question and wait for its answer.

        Raises:
            PeerError: the process ended, or answered with an error.
        """
        assert self._process.stdin is not None
        with self.awake():
            with suppress(BrokenPipeError):  # it has ended, which reading its answer reports
                self._process.stdin.write(json.dumps(question) + "\n")
                self._process.stdin.flush()
            return self._read()

    def _wait(self) -> None:
        self._read()

    def _read(self) -> Any:
        """The next line that is JSON: libraries print to stdout, too."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    raise PeerError(f"{self._name}: {answer['error']}")
                return answer
        raise PeerError(f"{self._name} ended with status {self._process.wait()}: {self._last_line()}")
