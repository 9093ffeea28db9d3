"""Sending a workload's requests when they are due."""

import asyncio
import time
from collections.abc import Callable, Iterator

import httpx

from serve.bench.client import Answer, ask
from serve.bench.target import Target
from serve.bench.workload import Arrivals, Item, Workload

Tell = Callable[[], object]


async def run(target: Target, workload: Workload, arrivals: Arrivals, tell: Tell = lambda: None) -> list[Answer]:
    """Send the warm-up, wait for it, then send the workload.

    Args:
        target: the server.
        workload: what to ask.
        arrivals: when.
        tell: called for each measured answer.

    Returns:
        The measured answers, in the order of their requests.

    Raises:
        WorkloadError: the popularity needs experts that the target does not name.
    """
    items = workload.items(list(target.experts))
    async with target.client() as client:
        await _closed(target, client, items[: workload.warm_up], max(1, arrivals.users or 4), lambda: None)
        measured = items[workload.warm_up :]
        if arrivals.kind == "closed":
            return await _closed(target, client, measured, arrivals.users, tell)
        return await _open(target, client, measured, arrivals.times(len(measured), workload.random()), tell)


async def _closed(target: Target, client: httpx.AsyncClient, items: list[Item], users: int, tell: Tell) -> list[Answer]:
    """Each user asks for the next item as soon as its last one is answered."""
    answers: dict[int, Answer] = {}
    queue = iter(enumerate(items))

    async def user() -> None:
        for number, item in queue:
            answers[number] = await ask(target, client, item)
            tell()

    await asyncio.gather(*(user() for _ in range(users)))
    return [answers[number] for number in range(len(items))]


async def _open(
    target: Target, client: httpx.AsyncClient, items: list[Item], times: Iterator[float], tell: Tell
) -> list[Answer]:
    """Each request goes out at its time, answered or not what came before it."""
    start = time.perf_counter()

    async def one(item: Item, due: float) -> Answer:
        answer = await ask(target, client, item, due)
        tell()
        return answer

    tasks = []
    for item, offset in zip(items, times, strict=True):
        await asyncio.sleep(max(0.0, start + offset - time.perf_counter()))
        tasks.append(asyncio.create_task(one(item, start + offset)))
    return await asyncio.gather(*tasks)
