"""Finished work, which is stored so that an interrupted run continues where it stopped."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kernels.compiled.build import cache_dir
from merge.bundle.files import replaced

T = TypeVar("T")


class OutOfTimeError(Exception):
    """The run's time is over; what is finished is kept."""


class Store:
    """Results by what they depend on, one JSON file each."""

    def __init__(self, root: Path | None = None, may_go_on: Callable[[], bool] = lambda: True) -> None:
        """Keep everything under `root` (None: the cache directory), and begin nothing once `may_go_on` says no."""
        self.root = root or cache_dir() / "quality"
        self._may_go_on = may_go_on

    def finished(self) -> "Store":
        """The same store, for reading alone."""
        return Store(self.root, lambda: False)

    def folder(self, *parts: str) -> Path:
        """A directory of the store, made if it is not there."""
        path = self.root.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def check_time(self) -> None:
        """Stop here if the time is over.

        Raises:
            OutOfTimeError: it is.
        """
        if not self._may_go_on():
            raise OutOfTimeError

    def result(self, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The stored result of a key; computed and stored first if there is none.

        Args:
            key: everything the result depends on, as JSON.
            compute: gives the result, as JSON.

        Raises:
            OutOfTimeError: it is not there and the time is over.
        """
        text = json.dumps(key, sort_keys=True)
        path = self.folder("cells") / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        if path.is_file():
            return json.loads(path.read_bytes())["result"]
        self.check_time()
        result = compute()
        with replaced(path) as partial:
            partial.write_text(json.dumps({"key": key, "result": result}) + "\n")
        return result


def finished_results(calls: Sequence[Callable[[], T]]) -> list[T]:
    """The results of the first calls that need nothing new."""
    found = []
    for call in calls:
        try:
            found.append(call())
        except OutOfTimeError:
            break
    return found
