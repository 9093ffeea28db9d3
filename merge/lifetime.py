"""Worker processes that end with the process that started them."""

import multiprocessing
import os
import signal
import threading


def die_with_parent() -> None:
    """Let this process of `multiprocessing` end when the process that started it ends, even by SIGKILL.

    A thread waits for that process. PR_SET_PDEATHSIG is not sufficient: the parent that the kernel knows is
    the fork server, which lives as long as its workers.
    """
    threading.Thread(target=_wait_for_parent, name="parent", daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
