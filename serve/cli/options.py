"""What the commands share: options that are also variables, and sizes with units."""

import re
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
