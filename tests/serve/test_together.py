import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve.together import MOST, Together


def test_calls_that_come_while_one_runs_are_done_together() -> None:
    begun, go, batches = threading.Event(), threading.Event(), []

    def work(asked: Sequence[int]) -> list[int]:
        batches.append(list(asked))
        begun.set()
        go.wait(10)
        return [one * one for one in asked]

    together: Together[int, int] = Together(work)
    with ThreadPoolExecutor(MOST + 8) as pool:
        first = pool.submit(together, 0)
        begun.wait(10)
        rest = [pool.submit(together, number) for number in range(1, MOST + 4)]
        while len(together._waiting) < MOST + 3:
            pass
        go.set()
        assert first.result() == 0
        assert [future.result() for future in rest] == [number * number for number in range(1, MOST + 4)]
    assert [len(batch) for batch in batches] == [1, MOST, 3]


def test_a_failure_is_that_of_each_call_and_does_not_stop_later_ones() -> None:
    def work(asked: Sequence[int]) -> list[float]:
        return [1 / one for one in asked]

    together: Together[int, float] = Together(work)
    with pytest.raises(ZeroDivisionError):
        together(0)
    assert together(2) == 0.5
