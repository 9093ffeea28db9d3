"""Worker processes that end with the process that started them."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the signal that a process gets when its parent ends."""


def die_with_parent(parent: int) -> None:
    """Let the kernel end this process when its parent ends, even by SIGKILL. Linux only; elsewhere nothing happens.

    Args:
        parent: the process id that the parent had when it started this process.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)
