"""Signals that come before a server listens to them."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

SERVERS = frozenset({"demo", "deploy", "serve"})
"""Commands that run until a signal stops them, which is a success."""


@contextlib.contextmanager
def handled_from_the_start(arguments: Sequence[str]) -> Iterator[None]:
    """End a server's process with status 0 on SIGTERM or SIGINT, and ignore SIGHUP, until it has its own handlers.

    A supervisor may stop or reload a server while Python still imports it; the default action would make that a
    failure. Other commands keep the defaults: a merge that is stopped has not succeeded. A signal that the parent
    process has set to be ignored (`nohup`) stays ignored.
    """
    if not SERVERS.intersection(arguments[:1]) or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGTERM: _leave, signal.SIGINT: _leave, signal.SIGHUP: _nothing}
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - what Python calls a handler with
    """End the process with status 0."""
    sys.exit(0)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Do not end: the keys that SIGHUP asks to read again have not been read yet."""
