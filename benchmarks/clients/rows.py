"""One client against a server: its calls, and those that failed."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.clients.sdks import Client
from benchmarks.peers.environment import PeerError, prepare

_SCRIPTS = Path(__file__).with_name("scripts")
_SECONDS = 600


@dataclass(frozen=True)
class Row:
    """What came of one client.

    Attributes:
        client: its name.
        version: its version.
        calls: how many calls it made, each of which may be several requests.
        failures: the calls that failed, with the reason.
        skipped: why it was not run.
    """

    client: str
    version: str
    calls: int = 0
    failures: tuple[str, ...] = ()
    skipped: str | None = None

    def document(self) -> dict[str, Any]:
        """The row for `json.dumps`."""
        return asdict(self)

    def __str__(self) -> str:
        if self.skipped is not None:
            return f"{self.client} {self.version}: skipped, {self.skipped}"
        failed = "".join(f"\n  {failure}" for failure in self.failures)
        return f"{self.client} {self.version}: {self.calls} calls, {len(self.failures)} failures{failed}"


def run_client(name: str, client: Client, url: str, model: str, say: Callable[[str], None]) -> Row:
    """Install a client unless it is there, and let its script ask the server."""
    try:
        python = prepare(client.environment, say)
    except PeerError as error:
        return Row(name, client.version, skipped=str(error))
    say(f"running {name} {client.version}")
    command: Sequence[str | Path] = (python, _SCRIPTS / client.script, url, model)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Row(name, client.version, failures=(f"the script did not end within {_SECONDS} seconds",))
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return Row(name, client.version, failures=(f"the script failed: {lines[-1]}",))
    return read_row(name, client.version, done.stdout)


def read_row(name: str, version: str, printed: str) -> Row:
    """The row of a script's last line; clients may print others."""
    calls = json.loads(printed.strip().splitlines()[-1])
    failures = tuple(f"{call['call']}: {call['error']}" for call in calls if call["error"] is not None)
    return Row(name, version, len(calls), failures)
