"""Progress of long work, on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

LINES_EVERY = 30.0
"""Seconds between the lines that show the progress of a stage if the output is not a terminal."""


class Progress:
    """Reports stages of known length."""

    def __init__(self, enabled: bool = True) -> None:
        """Write nothing unless `enabled`."""
        self._enabled = enabled

    @property
    def enabled(self) -> bool:
        """Whether anything is written."""
        return self._enabled

    def say(self, text: str) -> None:
        """Write a line (above the bar, if there is one)."""
        if self._enabled:
            tqdm.write(text, file=sys.stderr)

    @contextmanager
    def stage(self, name: str, total: int, row: int = 0) -> Iterator[Callable[[], None]]:
        """Report a stage. The returned function must be called after each of its `total` steps.

        Args:
            name: what is shown.
            total: steps.
            row: of the bar, counted from 0, if several are on the terminal at a time.
        """
        start = told = time.perf_counter()
        done = 0
        bar = tqdm(
            total=total,
            desc=name,
            file=sys.stderr,
            leave=False,
            position=row,
            disable=not self._enabled or not _terminal(),
        )
        if bar.disable:
            self.say(f"{name}: 0 of {total}")

        def advance() -> None:
            nonlocal done, told
            done += 1
            bar.update()
            now = time.perf_counter()
            if bar.disable and now - told >= LINES_EVERY and done < total:
                told = now
                self.say(f"{name}: {done} of {total}, about {(now - start) / done * (total - done):.0f} s left")

        try:
            yield advance
        finally:
            bar.close()
        self.say(f"{name}: done in {time.perf_counter() - start:.1f} s")


def _terminal() -> bool:
    return sys.stderr.isatty()
