"""A server in a separate process, for as long as a block runs."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 600
STOP_SECONDS = 30

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Child:
    """A running `overtone serve`.

    Attributes:
        url: its address.
        api_key: what it asks of its clients.
    """

    url: str
    api_key: str


@contextmanager
def serving(bundle: Path, options: Sequence[str] = ()) -> Iterator[Child]:
    """Run `overtone serve` on 127.0.0.1 and a free port, and end it however the block ends.

    Args:
        bundle: what it serves.
        options: of the command line, further ones.

    Raises:
        ValueError: it did not become ready; the message is its own error's.
    """
    port, key = _free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "serve.cli", "serve", str(bundle), "--port", str(port), "--host", "127.0.0.1"]
    # A certificate that the user's variables name is not for this address.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERTONE_SSL_")}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--log-level", "warning", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**environment, "OVERTONE_API_KEY": key},
        )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}/ready", log.fileno())
            yield Child(f"http://127.0.0.1:{port}", key)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ValueError(_last_error(log) or f"the server ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(_POLL_SECONDS)
    raise ValueError(f"the server was not ready after {START_SECONDS} seconds")


def _last_error(log: int) -> str:
    """The last line of the log, without the word that the command line puts before it."""
    written = os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace").strip()
    return written.rpartition("\n")[2].removeprefix("error: ")
