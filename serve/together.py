"""Calls that come at the same time, done together."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Found = TypeVar("Found")

MOST = 32
"""Calls done in one."""


class Together(Generic[Asked, Found]):
    """A function of one argument, made from a function of many, for callers in many threads.

    While one thread works, the calls of the others are collected, and the next thread does all of them. A call does not
    wait for others: a single call is done at once.
    """

    def __init__(self, work: Callable[[Sequence[Asked]], Sequence[Found]]):
        """Take the function of many, which is called by one thread at a time."""
        self._work = work
        self._working = threading.Lock()
        self._waiting: deque[tuple[Asked, Future[Found]]] = deque()

    def __call__(self, asked: Asked) -> Found:
        """The result for one. If the work fails, all that were done together get the same error."""
        mine: Future[Found] = Future()
        self._waiting.append((asked, mine))
        while not mine.done():
            with self._working:
                if not mine.done():
                    self._round()
        return mine.result()

    def _round(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
        try:
            results = self._work([asked for asked, _ in batch])
        except BaseException as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
