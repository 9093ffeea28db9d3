"""Results that are written at once, so that they remain if the process dies."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Mapping
from typing import TypeAlias

MARK = "GPU-RESULT "
FAILED = "FAILED "
"""What the lines of results and the values of failed ones begin with."""

Value: TypeAlias = float | str | bool | list[float] | list[str] | Mapping[str, "Value"] | None


def say(key: str, value: Value) -> None:
    """Print one result."""
    print(MARK + json.dumps({key: value}), flush=True)


def measure(key: str, work: Callable[[], Value]) -> None:
    """Tell the result of `work`, or what went wrong; later results are tried either way."""
    try:
        found = work()
    except Exception as error:
        say(key, f"{FAILED}{type(error).__name__}: {str(error)[:300]}")
        traceback.print_exc()
        return
    say(key, found)


def bounded(key: str, most: float, work: Callable[[], float]) -> None:
    """Tell an error that must not be above a bound."""

    def checked() -> float:
        found = work()
        if not found <= most:
            raise ArithmeticError(f"the error is {found:.2g}; at most {most:.2g} is rounding")
        return found

    measure(key, checked)


def gather(lines: list[str]) -> tuple[dict[str, Value], list[str]]:
    """The results among a process' lines, and the other lines."""
    found: dict[str, Value] = {}
    rest: list[str] = []
    for line in lines:
        if line.startswith(MARK):
            found |= json.loads(line[len(MARK) :])
        else:
            rest.append(line)
    return found, rest


def failed(results: Mapping[str, Value]) -> list[str]:
    """The keys whose result is a failure."""
    return [key for key, value in results.items() if isinstance(value, str) and value.startswith(FAILED)]


def rounded(number: float, digits: int = 3) -> float:
    """A number rounded to significant digits; -1 for one that is not finite, which JSON does not have."""
    if not math.isfinite(number):
        return -1.0
    return number if number == 0 else round(number, digits - 1 - math.floor(math.log10(abs(number))))
