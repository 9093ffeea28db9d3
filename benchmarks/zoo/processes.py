"""Training several fine-tunes at a time, each in a separate process."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import transformers

Result = TypeVar("Result")


def in_parallel(function: Callable[..., Result], work: Sequence[tuple[object, ...]], jobs: int) -> Iterator[Result]:
    """Call a function on each tuple of arguments, `jobs` at a time, and yield its results in order."""
    if jobs == 1:
        yield from (function(*arguments) for arguments in work)
        return
    # Forked from a server: a fork of a process whose torch has started threads may hang.
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__", function.__module__])
    quiet = transformers.utils.logging.disable_progress_bar
    with ProcessPoolExecutor(min(jobs, len(work)), context, initializer=quiet) as pool:
        yield from pool.map(function, *zip(*work, strict=True))
