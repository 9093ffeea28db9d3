"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Shows on standard error how far some work has come."""

    def __init__(self, name: str, steps: int) -> None:
        self._name = name
        self._steps = steps
        self._done = 0
        self._started = time.perf_counter()
        self._last_line = self._started
        self._bar = tqdm(total=steps, desc=name, leave=False, disable=not sys.stderr.isatty())

    @property
    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._started

    def step(self, note: str) -> None:
        """Show that one more step is done, and a word on it."""
        self._done += 1
        self._bar.update()
        self._bar.set_postfix_str(note, refresh=False)
        now = time.perf_counter()
        if self._bar.disable and (now - self._last_line >= _SECONDS_BETWEEN_LINES or self._done == self._steps):
            self._last_line = now
            print(
                f"{self._name}: {self._done} of {self._steps}, {note}, {self.seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
