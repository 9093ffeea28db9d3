"""Asking the system to hold weights in huge pages.

A step reads every weight once. In pages of 4 KiB that is a page-table walk for each, and the processor's own
prefetching stops at every page's end; most systems give huge pages only to memory that asks for them.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable
from functools import cache

from torch import Tensor

HUGE_PAGE, COLLAPSE = 14, 25
"""Linux's MADV_HUGEPAGE and MADV_COLLAPSE. The first speaks of pages that are still to come; the second brings together
those that are there, and is refused before Linux 6.1 and where a range holds no whole huge page."""


def ask_for_huge_pages(tensor: Tensor) -> None:
    """Ask that a CPU tensor's memory be held in huge pages; its values stay. Where there are none nothing happens."""
    advise = _madvise()
    if advise is None or tensor.device.type != "cpu":
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        for advice in (HUGE_PAGE, COLLAPSE):
            advise(first, last - first, advice)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function
