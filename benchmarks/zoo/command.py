"""What the zoo's commands share: an argument parser whose errors are one line."""

import argparse
from typing import NoReturn


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
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of at least 1")
    return number
