"""The command line of a benchmark that serves a bundle."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def command_line(module: str, description: str, served: str = "the embedded models") -> argparse.ArgumentParser:
    """A parser with the options that all of them have: `--bundle` and `--json`; `served`: what is served otherwise."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--bundle", type=Path, help=f"bundle to serve (default: {served})")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on stdout")
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes whole numbers from `least` on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number


def bundle_of(arguments: argparse.Namespace) -> Path:
    """The bundle that was asked for, or the tiny demo's."""
    if arguments.bundle is not None:
        return Path(arguments.bundle)
    from serve.demo import zoo_bundle  # it merges at the first call

    return zoo_bundle()


def show(arguments: argparse.Namespace, report: Mapping[str, Any], text: str, good: bool) -> int:
    """Print a report, as a document or as text; the exit status."""
    print(json.dumps(report, indent=2) if arguments.json else text)
    return 0 if good else 1
