"""The command line, `overtone`. One file a command; `app` lists them, `options` has what they share."""

from serve.cli.app import main

__all__ = ["main"]
