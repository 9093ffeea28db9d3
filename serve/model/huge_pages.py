"""Memory for weights that a step can read fast.

A step reads every weight once. In pages of 4 KiB that is a page-table walk for each, and the processor's own
prefetching stops at every page's end. Most systems give huge pages only to memory that asks for them, and only if it
spans whole ones: most layers' weights do not, so all of them get their memory together.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

ADVICE = 14
"""Linux's MADV_HUGEPAGE, which speaks of pages that are still to come."""
PAGE = 2 << 20
"""Bytes of a huge page on x86-64, and on arm64 with small pages of 4 KiB."""
ALIGNMENT = 64
"""Alignment of each tensor in bytes: a cache line."""


def hold_together(tensors: Sequence[Tensor]) -> None:
    """Give CPU tensors new memory, one after another in huge pages if the system has them.

    Their values are lost, so this comes before they have any. Tensors on other devices are not changed.

    Args:
        tensors: contiguous, each with separate memory.
    """
    ours = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in ours]
    whole = -(-sum(sizes) // PAGE) * PAGE
    memory = torch.empty(whole + PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % PAGE
    advise = _madvise()
    if advise is not None:
        advise(memory.data_ptr() + start, whole, ADVICE)
    for tensor, size in zip(ours, sizes, strict=True):
        tensor.set_(memory.untyped_storage(), start // tensor.itemsize, tensor.shape, tensor.stride())
        start += size


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function
