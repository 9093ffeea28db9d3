"""Captures on a GPU. Without one, which stream waits for which, on a model of torch.cuda's streams."""

from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature
from typing import Any

import pytest
import torch

from serve.engine.capture import CudaCapture


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_computes_again_with_what_is_in_its_tensors() -> None:
    x, y = torch.ones(4, device="cuda"), torch.zeros(4, device="cuda")
    graph = CudaCapture(x.device)(lambda: torch.mul(x, 2, out=y))
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [6.0] * 4


class Stream:
    """A stream, which knows the work that is done before what is put into it next."""

    def __init__(self) -> None:
        self.done: set[str] = set()

    def wait_stream(self, other: "Stream") -> None:
        self.done |= other.done


class Device:
    """Stands for torch.cuda. Work that runs during a capture is recorded and not done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.usual = self.current = Stream()
        self.recorded: list[tuple[Stream, Any, str]] = []
        self.capturing: tuple[Stream, Any, str] | None = None
        self.fails = False
        self.ended: list[tuple[int, Any]] = []
        self.released: list[tuple[int, Any]] = []
        device, takes = self, signature(torch.cuda.graph)

        class Switch:
            def __init__(self, stream: Stream) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                self.before, device.current = device.current, self.stream

            def __exit__(self, *_: object) -> None:
                device.current = self.before

        class Graph(Switch):
            """As torch.cuda.graph: does not return to the earlier stream if the end of the capture fails."""

            def __init__(self, *arguments: Any, **named: Any) -> None:
                bound = takes.bind(*arguments, **named).arguments
                super().__init__(bound["stream"])
                self.capture = (bound["stream"], bound["pool"], bound["capture_error_mode"])

            def __enter__(self) -> None:
                super().__enter__()
                device.capturing = self.capture

            def __exit__(self, *_: object) -> None:
                device.capturing = None
                if device.fails:
                    raise RuntimeError("capture was invalidated")
                super().__exit__()

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "stream", Switch)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(torch.cuda, "graph", Graph)
        for name, calls in (("_cuda_endAllocateToPool", self.ended), ("_cuda_releasePool", self.released)):
            monkeypatch.setattr(
                torch._C, name, lambda index, pool, calls=calls: calls.append((index, pool)), raising=False
            )

    def work(self, name: str, after: str | None = None) -> Callable[[], None]:
        """Work that must come after some other."""

        def run() -> None:
            if self.capturing is not None:
                assert self.current is self.capturing[0]
                self.recorded.append(self.capturing)
                return
            assert after is None or after in self.current.done, f"{name} may begin before {after} is done"
            self.current.done.add(name)

        return run


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def test_work_is_done_once_in_order_with_the_steps_around_it(device: Device) -> None:
    capture = CudaCapture(torch.device("cuda"))
    device.work("a step")()
    capture(device.work("the work", after="a step"))
    assert len(device.recorded) == 1
    device.work("the next step", after="the work")()
    assert device.current is device.usual


def test_captures_share_a_stream_and_a_pool_and_forbid_unsafe_calls_of_their_own_thread_only(device: Device) -> None:
    capture = CudaCapture(torch.device("cuda"))
    for name in ("one", "two"):
        capture(device.work(name))
    first, second = device.recorded
    assert first == second
    stream, pool, mode = first
    assert stream is not device.usual
    assert (pool, mode) == ((0, 1), "thread_local")


def test_a_capture_that_fails_leaves_the_stream_and_the_allocator_as_they_were(device: Device) -> None:
    device.fails = True
    with pytest.raises(RuntimeError, match="capture was invalidated"):
        CudaCapture(torch.device("cuda"))(device.work("the work"))
    assert device.current is device.usual
    assert device.ended == device.released == [(0, (0, 1))]


def test_work_that_fails_is_waited_for(device: Device) -> None:
    def fails() -> None:
        device.work("half of it")()
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        CudaCapture(torch.device("cuda"))(fails)
    device.work("an eager step", after="half of it")()
    assert not device.recorded


def test_torch_has_what_is_called() -> None:
    """By the names and arguments of torch.cuda, which a build without CUDA has too."""
    assert {"pool", "stream", "capture_error_mode"} <= signature(torch.cuda.graph).parameters.keys()
    assert hasattr(torch.cuda.CUDAGraph, "replay")
    assert hasattr(torch.cuda.Stream, "wait_stream")
    assert not signature(torch.cuda.graph_pool_handle).parameters
