"""Where Triton kernels run, and the one place that launches them."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


def runs_triton(x: Tensor) -> bool:
    """Whether Triton's kernels compute the operations on a tensor: it is on a GPU, and Triton is installed."""
    return x.is_cuda and _installed()


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def brought(made: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device. The host does not wait for a GPU, and does not write to the tensor again."""
    if device.type == "cuda":
        return made.pin_memory().to(device, non_blocking=True)
    return made.to(device)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a Triton kernel on the device of its first argument.

    Args:
        kernel: the jitted function.
        grid: programs along each axis.
        arguments: tensors and numbers, a tensor first.
        constants: the kernel's compile-time constants and options.
    """
    if arguments[0].is_cuda:
        # Triton launches on the current device, which is the first one by default.
        with torch.cuda.device(arguments[0].device):
            kernel[grid](*arguments, **constants)
    else:
        kernel[grid](*arguments, **constants)
