"""One request after the other beside a stream, and the stream's longest gap during each."""

import contextlib
import http.client
import time
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.event_loop.bodies import Case
from benchmarks.event_loop.victim import Victim

LIMIT_SECONDS = 0.2
"""No single request may delay the tokens of others by more."""

PAUSE_SECONDS = 0.3
"""Before and after each request: what the server still does after its reply delays the stream, too."""


@dataclass(frozen=True)
class Outcome:
    """What one request did.

    Attributes:
        name: the case's.
        megabytes: its body, in 10⁶ bytes.
        status: HTTP status of the reply.
        seconds: until the reply was there.
        gap_seconds: the longest time in which the stream beside it got nothing.
        good: whether the status was right and the gap within the limit.
    """

    name: str
    megabytes: float
    status: int
    seconds: float
    gap_seconds: float
    good: bool


def measure(url: str, cases: Iterable[Case], repeats: int, pause: float = PAUSE_SECONDS) -> list[Outcome]:
    """Send each case `repeats` times, with pauses of some seconds; the outcome with the longest gap of each."""
    outcomes = []
    with Victim(url) as victim:
        for case in cases:
            tries = [_once(url, case, victim, pause) for _ in range(repeats)]
            outcomes.append(max(tries, key=lambda it: it.gap_seconds))
    return outcomes


def _once(url: str, case: Case, victim: Victim, pause: float) -> Outcome:
    time.sleep(pause)
    victim.longest_gap()
    began = time.monotonic()
    status = _post(url, case)
    seconds = time.monotonic() - began
    time.sleep(pause)
    gap = victim.longest_gap()
    good = status in case.statuses and gap <= LIMIT_SECONDS
    return Outcome(case.name, len(case.content) / 1e6, status, seconds, gap, good)


def _post(url: str, case: Case) -> int:
    """The status. A server may answer, and close, before it has read all of a body that is too long."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    try:
        connection.putrequest("POST", case.path)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(len(case.content)))
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(case.content)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()
