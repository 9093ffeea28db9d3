"""Sending requests by chance, several at a time, and judging the replies."""

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from benchmarks.fuzz.bodies import Bodies, Shot
from benchmarks.server import Scrape

_KEPT = 10
_PATIENCE_SECONDS = 60.0
_ERROR_FIELDS = {"message", "type", "param", "code"}
_WARM_UP = 0.25
"""Share of the first requests that are left out, while caches and allocators fill."""


@dataclass
class Report:
    """What happened.

    Attributes:
        requests: sent.
        left: of these, those whose client went away.
        statuses: how often each HTTP status came.
        faults: what must not have happened, at most ten, in words.
        fault_count: how often it happened.
        held_requests: that the engine still has once all is over.
        held_blocks: KV blocks of theirs.
        rss_growth_mb: how much the server's memory grew in the last three quarters, in 10⁶ bytes.
    """

    requests: int = 0
    left: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0
    held_requests: int = 0
    held_blocks: int = 0
    rss_growth_mb: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.fault_count or self.held_requests or self.held_blocks)

    def fault(self, shot: Shot, what: str) -> None:
        """Note something that must not be."""
        self.fault_count += 1
        if len(self.faults) < _KEPT:
            self.faults.append(f"{what}: {shot.method} {shot.path} {shot.content[:300]!r}")

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        return {**asdict(self), "statuses": {str(status): n for status, n in sorted(self.statuses.items())}}

    def as_text(self) -> str:
        """For a person."""
        statuses = ", ".join(f"{n} × {status}" for status, n in sorted(self.statuses.items()))
        lines = [
            f"{self.requests} requests, {self.left} of them left early; statuses: {statuses}",
            f"{self.fault_count} faults; {self.held_requests} requests and {self.held_blocks} KV blocks still held; "
            f"memory grew by {self.rss_growth_mb:.1f} MB",
            *self.faults,
        ]
        return "\n".join(lines)


async def attack(url: str, requests: int, seed: int = 0, at_once: int = 16, key: str | None = None) -> Report:
    """Send `requests` requests to the server at `url`.

    Args:
        url: without a path.
        requests: how many.
        seed: of what they are.
        at_once: how many are under way together.
        key: an API key to bring.
    """
    report, bodies, turns = Report(), Bodies(seed), iter(range(requests))
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    limits = httpx.Limits(max_connections=at_once + 1)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=_PATIENCE_SECONDS, limits=limits) as client:
        warm = 0.0

        async def shooter() -> None:
            nonlocal warm
            for turn in turns:
                if turn == int(requests * _WARM_UP):
                    warm = (await _scrape(client)).resident_bytes
                shot = bodies.shot()
                report.requests += 1
                await _fire(client, shot, report)

        await asyncio.gather(*(shooter() for _ in range(at_once)))
        rest = await _at_rest(client)
    report.held_requests, report.held_blocks = rest.unfinished, rest.held_blocks
    report.rss_growth_mb = (rest.resident_bytes - warm) / 1e6
    return report


async def _fire(client: httpx.AsyncClient, shot: Shot, report: Report) -> None:
    try:
        if shot.leaves:
            report.left += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await client.request(shot.method, shot.path, content=shot.content)
            return
        reply = await client.request(shot.method, shot.path, content=shot.content)
    except httpx.HTTPError as error:
        report.fault(shot, f"no reply ({type(error).__name__})")
        return
    report.statuses[reply.status_code] += 1
    if (fault := _fault(reply)) is not None:
        report.fault(shot, fault)


def _fault(reply: httpx.Response) -> str | None:
    """What is wrong with a reply, None if nothing is."""
    if reply.status_code >= 500:
        return f"status {reply.status_code} with {reply.text[:200]!r}"
    if reply.status_code < 400:
        return None
    try:
        error = reply.json()["error"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"status {reply.status_code} without an error in JSON"
    if set(error) != _ERROR_FIELDS or not isinstance(error["message"], str) or "\n" in error["message"]:
        return f"an error that is not OpenAI's: {reply.text[:200]!r}"
    return None


async def _at_rest(client: httpx.AsyncClient) -> Scrape:
    """The server's figures once its engine has come to rest, or after some patience."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + _PATIENCE_SECONDS
    while True:
        scrape = await _scrape(client)
        if not (scrape.unfinished or scrape.held_blocks) or clock() > deadline:
            return scrape
        await asyncio.sleep(0.05)


async def _scrape(client: httpx.AsyncClient) -> Scrape:
    return Scrape.of((await client.get("/metrics")).text)
