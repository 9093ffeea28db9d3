"""What the commands share: options that are also variables, sizes with units, and the checks of the environment."""

import difflib
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import typer

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)


def option(*names: str, help: str, **settings: Any) -> Any:  # noqa: A002 - typer's own word
    """A typer option that `OVERTONE_<NAME>` sets too: `--max-num-seqs` is OVERTONE_MAX_NUM_SEQS."""
    variable = "OVERTONE_" + names[0].split("/")[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=variable, **settings)


def byte_size(text: str | int) -> int:
    """Bytes of "512MiB", "2GB", "2g", "1000000" or the number itself, which an option's default is.

    Raises:
        typer.BadParameter: it is none of these.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None or match[2].lower() not in _UNITS:
        raise typer.BadParameter(f"{text!r} is not a size; write bytes, or a number with a unit as in 512MiB or 2GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


PREFIX = "OVERTONE_"

NOT_OPTIONS = ("OVERTONE_CACHE_DIR", "OVERTONE_COMPILED", "OVERTONE_ISA")
"""Variables that are read if no command line is: by the kernels' build and by the demo's bundle."""

_TESTS = "OVERTONE_TEST_"
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def check_variables(program: Any, environment: Mapping[str, str]) -> None:
    """Refuse variables named OVERTONE_* that nothing reads, as a misspelt OVERTONE_API_KEY would leave a server open.

    The variables that Kubernetes sets in every pod for a Service named overtone, or overtone-something, are let pass.

    Args:
        program: the command line; its options' variables are known.
        environment: names and values.

    Raises:
        ValueError: nothing reads a variable, or Kubernetes has set one that an option reads.
    """
    known = {*NOT_OPTIONS, *_of_options(program)}
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX):
            continue
        if name in known:
            if _SERVICE_ADDRESS.match(value):
                raise ValueError(
                    f"{name} is {value!r}, which Kubernetes sets for a Service of that name: set "
                    f"`enableServiceLinks: false` in the pod's spec, or set {name} there"
                )
        elif not (name.startswith(_TESTS) or _SERVICE_LINK.search(name) or _SERVICE_ADDRESS.match(value)):
            raise ValueError(f"the environment variable {name} is unknown{_suggestion(name, known)}")


def _of_options(command: Any) -> Iterator[str]:
    """Variables of a command's options, and of its commands' options."""
    for parameter in command.params:
        if parameter.envvar is not None:
            yield parameter.envvar
    for inner in getattr(command, "commands", {}).values():
        yield from _of_options(inner)


def _suggestion(name: str, known: set[str]) -> str:
    """The known name that is spelt most like it."""
    endings = {other.removeprefix(PREFIX): other for other in known}
    close = difflib.get_close_matches(name.removeprefix(PREFIX), sorted(endings), n=1)
    return f"; did you mean {endings[close[0]]}?" if close else "; `--help` of a command lists its options' variables"


def check_environment() -> None:
    """Refuse to run beside the distribution `kernels`, Hugging Face's, whose import package has the name of ours.

    Raises:
        ImportError: it is installed.
    """
    try:
        other = distribution("kernels")
    except PackageNotFoundError:
        return
    raise ImportError(
        f"the package `kernels` {other.version} from PyPI is installed beside overtone, whose own `kernels` it "
        "hides; run `pip uninstall kernels`, then install overtone again, or use separate environments"
    )
