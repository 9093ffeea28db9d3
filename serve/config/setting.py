"""A field of the settings that is also an option of the command line and an environment variable."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

KEY = "setting"
"""Where a field's metadata has its `Setting`."""


@dataclass(frozen=True)
class Setting:
    """What a field's option is called, what its help says, and which values the field may have.

    Attributes:
        help: of the option.
        flags: of the option, the first of which also names its variable; none: the field's name makes one.
        size: the option takes sizes with units, as in 512MiB.
        repeatable: the option may be given several times, once for each value of the field.
        words: the values that the field may have; none: any.
        least: the smallest number that the field may have.
        seconds: the field is a time: more than 0 seconds, and finite.
        show_default: the help names the default.
    """

    help: str
    flags: tuple[str, ...] = ()
    size: bool = False
    repeatable: bool = False
    words: tuple[str, ...] = ()
    least: int | None = None
    seconds: bool = False
    show_default: bool = True


def setting(default: Any, help: str, *flags: str, words: Sequence[str] = (), **others: Any) -> Any:  # noqa: A002
    """A field of a settings dataclass.

    Args:
        default: the field's, and the option's.
        help: of the option.
        flags: `Setting.flags`.
        words: `Setting.words`.
        others: the other attributes of `Setting`.
    """
    made = Setting(help, flags, words=tuple(words), **others)
    return dataclasses.field(default=default, metadata={KEY: made})


def check_settings(settings: Any) -> None:
    """Check the fields of a settings dataclass; None is a value of the fields whose type has it.

    Raises:
        ValueError: a field has a value that its `Setting` does not allow.
    """
    for field in dataclasses.fields(settings):
        made: Setting | None = field.metadata.get(KEY)
        value = getattr(settings, field.name)
        optional = type(None) in get_args(field.type)
        if made is None or (value is None and optional):
            continue
        if made.words and value not in made.words:
            raise ValueError(f"{field.name} is {value!r}; it must be one of {', '.join(made.words)}")
        unset = ", or unset" if optional else ""
        if made.least is not None and value < made.least:
            raise ValueError(f"{field.name} is {value}; it must be at least {made.least}{unset}")
        if made.seconds and not 0 < value < float("inf"):
            raise ValueError(f"{field.name} is {value}; it must be more than 0 seconds{unset}")
