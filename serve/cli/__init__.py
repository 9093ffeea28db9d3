"""The command line, `overtone`. One file a command; `app` lists them, `options` has what they share."""

import sys
from collections.abc import Sequence

from serve.cli.signals import handled_from_the_start

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit, see `serve.cli.app.main`. `arguments` are those of the process if not given."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with handled_from_the_start(arguments):
        from serve.cli import app  # takes a tenth of a second: a signal may come in it

        app.main(arguments)
