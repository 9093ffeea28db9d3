"""Progress of long work, on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Progress:
    """Reports stages of known length."""

    def __init__(self, enabled: bool = True) -> None:
        """Write nothing unless `enabled`."""
        self._enabled = enabled

    def say(self, text: str) -> None:
        """Write a line (above the bar, where there is one)."""
        if self._enabled:
            tqdm.write(text, file=sys.stderr)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """Report a stage; the function given is to be called after each of its `total` steps."""
        start = time.perf_counter()
        bar = tqdm(total=total, desc=name, file=sys.stderr, leave=False, disable=not self._enabled or not _terminal())
        if bar.disable:
            self.say(f"{name}: {total} to do")

        def advance() -> None:
            bar.update()

        try:
            yield advance
        finally:
            bar.close()
        self.say(f"{name}: done in {time.perf_counter() - start:.1f} s")


def _terminal() -> bool:
    return sys.stderr.isatty()
