"""The calls of torch.cuda that capturing makes, recorded without a GPU."""

from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature
from typing import Any

import pytest
import torch

from serve.engine.capture import CudaCapture


class Calls:
    """Stands for torch.cuda, and notes what is asked of it in which stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.current = "usual"
        self.fails = False
        takes = signature(torch.cuda.graph)

        calls = self

        class Stream:
            def __init__(self, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: "Stream") -> None:
                calls.made.append(f"{self.name} waits for {other.name}")

        class Switch:
            def __init__(self, stream: Stream) -> None:
                self.stream, self.before = stream, ""

            def __enter__(self) -> None:
                self.before, calls.current = calls.current, self.stream.name

            def __exit__(self, *_: object) -> None:
                calls.current = self.before

        class Graph:
            """As torch.cuda.graph: does not go back to the stream before where the end of the capture fails."""

            def __init__(self, *arguments: Any, **named: Any) -> None:
                bound = takes.bind(*arguments, **named).arguments
                calls.made.append(f"capture into {bound['pool']} with {bound['capture_error_mode']}")
                self.stream = bound["stream"]

            def __enter__(self) -> None:
                self.before, calls.current = calls.current, self.stream.name

            def __exit__(self, *_: object) -> None:
                if calls.fails:
                    raise RuntimeError("capture was invalidated")
                calls.current = self.before

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(self.current))
        monkeypatch.setattr(torch.cuda, "stream", Switch)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "the graph")
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(torch.cuda, "graph", Graph)
        for name, said in (("_cuda_endAllocateToPool", "end"), ("_cuda_releasePool", "release")):
            monkeypatch.setattr(torch._C, name, self.noting(said), raising=False)

    def noting(self, said: str) -> Callable[[int, tuple[int, int]], None]:
        return lambda device, pool: self.made.append(f"{said} {pool} of {device}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def test_the_work_is_done_once_on_the_captures_stream_and_then_captured(calls: Calls) -> None:
    capture = CudaCapture(torch.device("cuda"))
    assert capture(lambda: calls.made.append(f"work in {calls.current}")) == "the graph"
    once = [
        "side waits for usual",
        "work in side",
        "usual waits for side",
        "capture into (0, 1) with thread_local",
        "work in side",
    ]
    assert calls.made == once
    capture(lambda: calls.made.append(f"work in {calls.current}"))
    assert calls.made == once + once
    assert calls.current == "usual"


def test_a_capture_that_fails_leaves_the_stream_and_the_allocator_as_they_were(calls: Calls) -> None:
    calls.fails = True
    with pytest.raises(RuntimeError, match="capture was invalidated"):
        CudaCapture(torch.device("cuda"))(lambda: None)
    assert calls.current == "usual"
    assert calls.made[-2:] == ["end (0, 1) of 0", "release (0, 1) of 0"]


def test_torch_has_what_is_called() -> None:
    """By the names and arguments of torch.cuda, which a build without CUDA has too."""
    assert {"pool", "stream", "capture_error_mode"} <= signature(torch.cuda.graph).parameters.keys()
    assert hasattr(torch.cuda.CUDAGraph, "replay")
    assert hasattr(torch.cuda.Stream, "wait_stream")
    assert not signature(torch.cuda.graph_pool_handle).parameters
