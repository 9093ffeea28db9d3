"""Launches of the GPU's kernels on tensors without values, for the tests that count them."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import on_gpu
from tests.serve.engine.replays import without_compiled_kernels

META = torch.device("meta")
"""Stands for the GPU: a device that is not the CPU, whose values cannot be read."""


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """The kernels' launches, which take the GPU's way up to the launch itself."""
    found: Counter[str] = Counter()

    def launch(kernel: Any, grid: tuple[int, ...], *operands: Any, **_: Any) -> None:
        assert all(operand.device == META for operand in operands if isinstance(operand, Tensor))
        assert all(grid)
        found[kernel.__name__] += 1

    monkeypatch.setattr(on_gpu, "launch", launch)
    monkeypatch.setattr(on_gpu, "runs_triton", lambda x: x.device == META)
    with without_compiled_kernels():
        yield found
