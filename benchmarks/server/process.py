"""A server of this project in a separate process, and its own figures."""

import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True)
class Scrape:
    """The series of /metrics that have no labels, at one moment."""

    series: Mapping[str, float]

    @classmethod
    def of(cls, text: str) -> "Scrape":
        """Read Prometheus' text."""
        return cls({name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)})

    @property
    def unfinished(self) -> int:
        """Sequences that run or wait."""
        return int(self.series["overtone_num_requests_running"] + self.series["overtone_num_requests_waiting"])

    @property
    def held_blocks(self) -> int:
        """KV blocks that sequences hold."""
        return round(self.series["overtone_kv_cache_usage_perc"] * self.series["overtone_kv_cache_blocks"])

    @property
    def resident_bytes(self) -> float:
        """The process' memory."""
        return self.series["process_resident_memory_bytes"]


_START_SECONDS = 300
_STOP_SECONDS = 120


class ServerProcess:
    """A running `overtone serve`.

    Attributes:
        url: its address.
        pid: its number.
        ready_seconds: from its start until it was ready.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", url: str):
        self._process = process
        self.url = url
        self.pid = process.pid
        self.ready_seconds = 0.0

    def scrape(self, http: httpx.Client) -> Scrape:
        """Its figures now."""
        return Scrape.of(http.get(f"{self.url}/metrics").text)

    def stop(self) -> int:
        """End it by SIGTERM; its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@contextmanager
def server_process(
    bundle: Path,
    options: Sequence[str],
    admin_key: str | None = None,
    patience: float = _START_SECONDS,
    started: Callable[[int], None] = lambda _: None,
) -> Iterator[ServerProcess]:
    """Run `overtone serve` on 127.0.0.1 and a free port, and end it however the block ends.

    Args:
        bundle: what it serves.
        options: further ones.
        admin_key: the key that may load the bundle's experts; None: loading is off.
        patience: seconds in which it must become ready.
        started: called with the number of the process before it is ready.

    Raises:
        RuntimeError: it did not become ready; the message has the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "serve.cli", "serve", str(bundle), "--port", str(port), *options]
    if admin_key is not None:
        command += ["--admin-api-key", admin_key, "--expert-dir", str(bundle / "experts")]
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        server = ServerProcess(process, f"http://127.0.0.1:{port}")
        try:
            started(process.pid)
            _wait(process, server.url, patience)
            server.ready_seconds = time.perf_counter() - start
            yield server
        except RuntimeError as error:
            log.seek(0)
            raise RuntimeError(f"{error}: {log.read()[-2000:].decode(errors='replace')}") from error
        finally:
            if process.poll() is None:
                server.stop()


def _wait(process: "subprocess.Popen[bytes]", url: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode} before it was ready")
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the server was not ready after {patience:g} seconds")
