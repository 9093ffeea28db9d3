"""Advisory locks on directories: who writes what, seen by every process of this machine and its containers."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNSUPPORTED = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP})
"""What file systems answer that have no such locks (NFS asks for a file open for writing)."""


class DirectoryLock:
    """An exclusive lock on a directory, released by `release` or by the end of the process, however it ends.

    On a file system without locks the lock is taken in name only.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, directory: Path, wait: bool) -> "DirectoryLock | None":
        """Lock a directory.

        Args:
            directory: it must exist.
            wait: wait for another holder; otherwise None is returned if there is one.
        """
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                os.close(descriptor)
                raise
        return cls(descriptor)

    def release(self) -> None:
        """Let the directory go; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory's lock for the length of a block; waits for other holders."""
    lock = DirectoryLock.acquire(directory, wait=True)
    assert lock is not None  # it waited
    try:
        yield
    finally:
        lock.release()


def is_locked(directory: Path) -> bool:
    """Whether a process holds a directory's lock. False if the directory is gone."""
    try:
        lock = DirectoryLock.acquire(directory, wait=False)
    except FileNotFoundError:
        return False
    if lock is None:
        return True
    lock.release()
    return False
