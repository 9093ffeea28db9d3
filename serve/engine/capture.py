"""Capturing work into a CUDA graph: all that talks to torch.cuda, behind a protocol that tests have another of."""

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import torch


class Graph(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Do it again, on the tensors it was captured with and what is in them now."""


class Capture(Protocol):
    """Makes work repeatable."""

    def __call__(self, work: Callable[[], None]) -> Graph:
        """Capture work that reads and writes tensors at fixed addresses. The work may also be done once.

        Raises:
            Exception: it cannot be captured. Then nothing should be captured any more.
        """


class CudaCapture:
    """Captures CUDA graphs that share one pool of memory. It has not run on a GPU yet.

    What is relied on, as torch 2.13's `torch.cuda.graphs` and `CUDAGraph.cpp` say it:

    * Kernels are recorded with the addresses of their operands, so all of the work's tensors must keep theirs.
      A replay goes to the stream that is current then, in order with the copies into those tensors before it.
    * Nothing may wait for the device during a capture, and first calls may: the work is done once before, on the
      stream of the capture, which also compiles the Triton kernels and makes cuBLAS' workspace for that stream.
    * Memory that the work takes comes from the pool and is taken again by the next capture. So graphs must not run at
      the same time, and what is wanted of a result is copied out of the pool by the work itself.
    * The thread that loads experts copies to the device meanwhile: "thread_local" forbids unsafe calls here alone.
    * A capture that fails leaves the stream and the allocator in the middle of it: both are put back.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: torch.cuda._POOL_HANDLE | None = None

    def __call__(self, work: Callable[[], None]) -> Graph:
        """Do the work, then capture it.

        Raises:
            RuntimeError: it waits for the device, copies from the host, or finds no memory.
        """
        with torch.cuda.device(self._device):
            stream = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            pool = self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            # If the end of a capture fails, `torch.cuda.graph` does not go back to the stream before: this does.
            with torch.cuda.stream(before):
                stream.wait_stream(before)
                try:
                    with torch.cuda.stream(stream):
                        work()
                finally:  # what it began writes to the cache, and an eager step comes next
                    before.wait_stream(stream)
                try:
                    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                        work()
                except BaseException:
                    # As `torch.cuda.use_mem_pool` leaves a pool; the first call raises if the allocator has left it.
                    with suppress(Exception):
                        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
                        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
                    raise
        return graph
