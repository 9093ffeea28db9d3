"""Time on a device: of calls from the host, and of work that was captured into a CUDA graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


class Clock:
    """Times work on a device. On a CPU, which only tries the check out, everything has two rounds."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], rounds: int = 7) -> float:
        """Median seconds of a call, the device waited for."""
        times = []
        for _ in range(rounds if self.on_gpu else 2):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def microseconds(self, works: Sequence[Callable[[], object]], rounds: int = 15) -> float:
        """Median microseconds of one of `works`, captured one after another.

        Launches then cost nothing. If all works together read more than the second-level cache holds, each finds it
        cold.
        """
        if not self.on_gpu:
            return self.seconds(lambda: [work() for work in works]) / len(works) * 1e6
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for work in works:
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for work in works:
                work()
        graph.replay()
        times = []
        for _ in range(rounds):
            before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            before.record()
            graph.replay()
            after.record()
            after.synchronize()
            times.append(float(before.elapsed_time(after)) * 1e3 / len(works))
        return statistics.median(times)
