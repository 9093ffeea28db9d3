"""One soak, from the server's start to its exit."""

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.server import Scrape, ServerProcess, server_process
from benchmarks.soak.load import ADMIN_KEY, WEIGHTS, Load
from benchmarks.soak.tally import Tally, slope_mb_per_minute
from merge.bundle import open_bundle
from serve.demo.check import unseen_prompts

_MAX_NUM_SEQS = 16
_QUEUED = 16
_REQUEST_SECONDS = 120.0
_IDLE_SECONDS = 60.0
_SAMPLE_SECONDS = 0.5
_TELL_SECONDS = 30.0


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        bundle: what is served.
        seconds: how long load is made.
        workers: clients at once, apart from bursts.
        seed: of the load.
    """

    bundle: Path
    seconds: float
    workers: int = 12
    seed: int = 0


@dataclass
class Report:
    """What came of it.

    Attributes:
        plan: what was done.
        tally: how requests ended.
        seconds: how long load was made, the last requests' ends included.
        rss: (seconds, bytes) of the server's resident memory.
        leaked_blocks: KV blocks in use once nothing ran any more.
        unfinished: sequences that still ran or waited when everybody had gone.
        exit_status: of the server after SIGTERM.
        generated_tokens: by the server's count.
    """

    plan: Plan
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    rss: list[tuple[float, float]] = field(default_factory=list)
    leaked_blocks: int = 0
    unfinished: int = 0
    exit_status: int = 0
    generated_tokens: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing failed, leaked or was lost."""
        tally = self.tally
        return not any(
            (
                *(tally.server_errors.total(), tally.wrong.total(), tally.unaccounted),
                *(self.leaked_blocks, self.unfinished, self.exit_status),
            )
        )

    def as_json(self) -> dict[str, Any]:
        """One document."""
        return {
            "seconds": round(self.seconds, 1),
            **self.tally.as_json(),
            "generated_tokens": self.generated_tokens,
            "rss_mb": {"first": _mb(self.rss[0][1]), "last": _mb(self.rss[-1][1])} if self.rss else {},
            "rss_slope_mb_per_min": round(slope_mb_per_minute(self.rss), 3),
            "leaked_blocks": self.leaked_blocks,
            "unfinished": self.unfinished,
            "exit_status": self.exit_status,
            "clean": self.clean,
        }

    def as_text(self) -> str:
        """A line for each figure."""
        return "\n".join(f"{name}: {value}" for name, value in self.as_json().items())


def soak(plan: Plan) -> Report:
    """Run a server under load, then end it.

    Raises:
        RuntimeError: it did not become ready.
    """
    report = Report(plan)
    experts = open_bundle(plan.bundle).expert_names
    options = [
        *("--max-num-seqs", str(_MAX_NUM_SEQS), "--max-num-queued-reqs", str(_QUEUED), "--log-level", "warning"),
        *("--expert-slots", str(-(-len(experts) // 2))),  # so that experts come and go
    ]
    with server_process(plan.bundle, options, ADMIN_KEY) as server:
        asyncio.run(_load(report, server, experts))
        with httpx.Client(timeout=30) as http:
            rest = _when_idle(server, http)
        report.unfinished, report.leaked_blocks = rest.unfinished, rest.held_blocks
        report.generated_tokens = int(rest.series["overtone_generation_tokens_total"])
        report.exit_status = server.stop()
    return report


async def _load(report: Report, server: ServerProcess, experts: Sequence[str]) -> None:
    plan, began = report.plan, time.monotonic()
    end = began + plan.seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=server.url, timeout=_REQUEST_SECONDS, limits=limits) as http:
        models, files = ["auto", "backbone", *experts], [f"{name}.safetensors" for name in experts]
        prompts = [example.prompt for examples in unseen_prompts(4, plan.seed).values() for example in examples]
        load = Load(http, report.tally, plan.seed, models, files, prompts, 2 * (_MAX_NUM_SEQS + _QUEUED))
        watch = asyncio.create_task(_watch(report, server, began))
        await asyncio.gather(*(_worker(load, n, end) for n in range(plan.workers)))
        watch.cancel()
    report.seconds = time.monotonic() - began


async def _worker(load: Load, number: int, end: float) -> None:
    """Send one request after another; the workers' first ones are of all kinds."""
    chance = random.Random(f"{load.seed}-{number}")
    kinds = list(WEIGHTS)
    kind = kinds[number % len(kinds)]
    while time.monotonic() < end:
        await load.one(kind, chance)
        (kind,) = chance.choices(kinds, list(WEIGHTS.values()))


async def _watch(report: Report, server: ServerProcess, began: float) -> None:
    """Sample the server's memory, and tell now and then how far it is."""
    told = began
    with httpx.Client(timeout=30) as http:
        while True:
            scrape = await asyncio.to_thread(server.scrape, http)
            now = time.monotonic()
            report.rss.append((now - began, scrape.resident_bytes))
            if now - told >= _TELL_SECONDS:
                told = now
                print(
                    f"{now - began:.0f} of {report.plan.seconds:.0f} s: {report.tally.requests} requests, "
                    f"{_mb(report.rss[-1][1])} MB",
                    file=sys.stderr,
                    flush=True,
                )
            await asyncio.sleep(_SAMPLE_SECONDS)


def _when_idle(server: ServerProcess, http: httpx.Client) -> Scrape:
    """The server's figures once nothing runs or waits, or when patience ends."""
    deadline = time.monotonic() + _IDLE_SECONDS
    while True:
        scrape = server.scrape(http)
        if not scrape.unfinished or time.monotonic() > deadline:
            return scrape
        time.sleep(0.1)


def _mb(nbytes: float) -> float:
    return round(nbytes / 1e6, 1)
