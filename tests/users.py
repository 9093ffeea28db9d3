"""Running as a user who may not read everything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def another_user() -> Iterator[None]:
    """Give up root's right to read any file, if the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def open_to_all(directory: Path) -> None:
    """Let other users enter a directory of pytest's, which are closed to them."""
    for parent in (directory, *directory.parents):
        if parent.stat().st_uid == os.geteuid() and parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o755)
