"""Computing many things several at a time, each by one thread alone, so that their number shows in no bit."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch

from merge.bundle import available_cores
from merge.device import CPU, available_bytes
from merge.ray_pool import RayPool

Key = TypeVar("Key")
Result = TypeVar("Result")


def in_order(
    keys: Sequence[Key], compute: Callable[[Key], Result], threads: int | None, ray_pool: RayPool | None = None
) -> Iterator[tuple[Key, Result]]:
    """Compute several at a time; results come in the given order, and only as many wait or run.

    Args:
        keys: what to compute.
        compute: a key's result.
        threads: how many at a time; None: as many as there are cores.
        ray_pool: Ray's workers, which then compute in place of threads.
    """
    width = threads or (available_cores() if ray_pool is None else ray_pool.width)
    with _single_threaded_torch(), nullcontext(ray_pool) if ray_pool else ThreadPoolExecutor(width) as pool:
        running: deque[tuple[Key, Future[Result]]] = deque()
        try:
            for key in keys:
                if len(running) == width:
                    done, future = running.popleft()
                    yield done, future.result()
                    del future  # its result is used: let it go before the next one is made
                running.append((key, pool.submit(compute, key)))
            while running:
                done, future = running.popleft()
                yield done, future.result()
                del future
        finally:
            for _, future in running:
                future.cancel()


def fitting(threads: int, each: int, device: torch.device = CPU) -> int:
    """The number of threads that fit into half of the memory that is free within the limits of control groups.

    At least 1.

    Args:
        threads: at most.
        each: bytes that one takes.
        device: whose memory it is.
    """
    return max(1, min(threads, available_bytes(device) // 2 // max(each, 1)))


@contextmanager
def _single_threaded_torch() -> Iterator[None]:
    """Keep torch from splitting sums and products over threads, whose number would show in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
