"""config.json as a family reads it: fields by name, each checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.model.errors import ModelError


@dataclass(frozen=True)
class Settings:
    """The fields of a config.json.

    Attributes:
        raw: all of them.
        directory: of the file.
        architecture: the one of its architectures that is served.
    """

    raw: Mapping[str, Any]
    directory: Path
    architecture: str

    def given(self, key: str, usual: Any = None) -> Any:
        """A field that must not be null; absent, it is `usual`.

        Raises:
            KeyError: it is absent, and a usual value was not given.
            ModelError: it is null.
        """
        value = self.raw[key] if usual is None else self.raw.get(key, usual)
        if value is None:
            raise ModelError(f"config.json: {key} is null; it must be a number")
        return value

    def count(self, key: str, usual: int | None = None) -> int:
        """A positive whole number.

        Raises:
            KeyError: it is absent, and a usual value was not given.
            ModelError: it is something else.
        """
        value = self.given(key, usual)
        if type(value) is not int or value < 1:
            raise ModelError(f"config.json: {key} is {value!r}; it must be a positive whole number")
        return value

    def number(self, key: str, usual: float) -> float:
        """A number; absent, it is `usual`.

        Raises:
            ModelError: it is something else.
        """
        value = self.given(key, usual)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(f"config.json: {key} is {value!r}; it must be a number")
        return float(value)

    def cap(self, key: str, usual: float | None = None) -> float | None:
        """A number above 0, or None if it is null; absent, it is `usual`.

        Raises:
            ModelError: it is something else.
        """
        value = self.raw.get(key, usual)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ModelError(f"config.json: {key} is {value!r}; it must be a number above 0, or null")
        return float(value)

    def flag(self, key: str, usual: bool = False) -> bool:
        """A truth value; absent or null, it is `usual`."""
        value = self.raw.get(key)
        return usual if value is None else bool(value)

    def refuse(self, key: str, *usual: Any) -> None:
        """Refuse a field that has another value than the usual ones; absent and null are usual.

        Raises:
            ModelError: it has another value.
        """
        value = self.raw.get(key)
        if value is not None and value not in usual:
            raise ModelError(
                f"config.json: {key} {value!r} is not implemented for {self.architecture}: it must be "
                f"{' or '.join(map(repr, usual)) or 'null'}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        ModelError: the file does not exist, or does not contain such an object.
    """
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"no {path.name} in {path.parent}: a model is a Hugging Face directory") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object")
    return document
