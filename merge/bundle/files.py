"""Durable files: what is written is on disk, and under its name only when complete.

Files get the mode that the umask allows, as `open` gives it, whatever wrote them: safetensors creates files that only
their owner can read, and a bundle is merged by one user and served by another.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from merge.bundle.errors import BundleError


def fsync_path(path: Path) -> None:
    """Flush a file, or a directory's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share_files(directory: Path) -> None:
    """Give every file below a directory the mode that the directory's own implies, without the right to execute.

    The directory must have been made by `mkdir`, which obeys the umask.
    """
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a temporary sibling to write to; on success it is flushed and takes `path`'s place, else it is removed."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.touch()
        mode = partial.stat().st_mode & 0o777
        yield partial
        partial.chmod(mode)
        fsync_path(partial)
        partial.replace(path)
        fsync_path(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Give a temporary sibling directory to fill; on success it is flushed and takes `out`'s place, else it goes.

    Raises:
        BundleError: `out` is a file, or a directory that is not empty.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} exists and is {'not empty' if out.is_dir() else 'a file'}: choose another path")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        share_files(partial)
        for path in partial.rglob("*"):
            fsync_path(path)
        fsync_path(partial)
        partial.replace(out)  # over a directory that is there, if it is empty
        fsync_path(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
