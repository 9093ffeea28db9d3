"""The environment variables that the program reads, and the refusal of any other that begins like them."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = "OVERTONE_"

NOT_OPTIONS = ("OVERTONE_CACHE_DIR", "OVERTONE_COMPILED", "OVERTONE_ISA")
"""Variables that are read where no command line is: by the kernels' build and by the demo's bundle."""

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
