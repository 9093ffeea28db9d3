"""What the zoo's commands share: an argument parser whose errors are one line, and progress of long work."""

import argparse
import sys
import time
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm


class Parser(argparse.ArgumentParser):
    """An argument parser that answers bad arguments with one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Print the message alone; the usage is under `--help`."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return number


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
