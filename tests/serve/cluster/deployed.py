"""An `overtone deploy` in a separate process."""

import contextlib
import ipaddress
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import httpx
from prometheus_client.parser import text_string_to_metric_families

COMMAND = [sys.executable, "-c", "from serve.cli import main; main()", "deploy"]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # of these tests' own; Ray would write one to the user's home
}


class Deployed:
    """What is deployed, and what its log says."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**ENVIRONMENT, **(environment or {})},
        )
        self.log = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.log += line

    def said(self, pattern: str) -> str:
        """The first group of what the log says, once it does."""
        deadline = time.monotonic() + 200
        while (match := re.search(pattern, self.log)) is None:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return match[1]

    @property
    def url(self) -> str:
        return self.said(r"serving .* on (http://\S+)")

    @property
    def address(self) -> str:
        return self.said(r"--address (\S+)")

    def processes(self) -> dict[str, int]:
        """Process ids of all replicas that there ever were, by name."""
        return {name: int(pid) for name, pid in re.findall(r"replica (\w+) of \S+ is process (\d+)", self.log)}

    def end(self) -> int:
        """Stop it as an operator would; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(100)
        finally:
            self.process.kill()
            self._reader.join()
            self.process.stdout.close()


@contextlib.contextmanager
def deployed(bundle: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Deployed]:
    with running([*COMMAND, str(bundle), "--port", "0", *options], environment) as deployment:
        yield deployment


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Deployed]:
    """A command that says what it serves, and on which URL, until it is ended."""
    deployment = Deployed(command, environment)
    try:
        assert deployment.url
        yield deployment
    finally:
        status = deployment.end()
    assert status == 0, deployment.log


def samples(url: str) -> dict[tuple[str, ...], dict[str, float]]:
    """(metric, label values in the order of their names) → replica → value."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    text = httpx.get(f"{url}/metrics", timeout=20, verify=False).text  # verify: it would read the system's certificates
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            replica = labels.pop("replica", "")
            found.setdefault((sample.name, *(labels[name] for name in sorted(labels))), {})[replica] = sample.value
    return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Return once it is so."""
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def engines(url: str) -> set[str]:
    """Names of the replicas that are scraped."""
    return set(samples(url)["overtone_num_requests_running",]) - {"ingress"}


def listening(process: int) -> set[tuple[str, int]]:
    """(address, port) of the TCP sockets that a process and all below it listen on. Reads Linux's /proc."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    family = {process}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    sockets = set()
    for member in family:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{member}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(str(descriptor.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, _, port = fields[1].partition(":")
                words = [
                    int(address[start : start + 8], 16).to_bytes(4, sys.byteorder)
                    for start in range(0, len(address), 8)
                ]
                number = ipaddress.ip_address(b"".join(words))
                found.add((str(getattr(number, "ipv4_mapped", None) or number), int(port, 16)))
    return found


def scraped_service(url: str) -> SimpleNamespace:
    """Stands for a service in tests that ask its engine how busy it is."""

    def stats() -> SimpleNamespace:
        found = samples(url)
        used = found["overtone_kv_cache_usage_perc",]
        return SimpleNamespace(
            running=sum(found["overtone_num_requests_running",].values()),
            waiting=sum(found["overtone_num_requests_waiting",].values()),
            kv_blocks_used=sum(used.values()),
        )

    return SimpleNamespace(runtime=SimpleNamespace(engine=SimpleNamespace(stats=stats)))
