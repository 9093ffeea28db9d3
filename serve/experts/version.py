"""One content of one expert, the errors of loading it, and their log."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from merge.bundle import GenerationSettings

LoadFailure = Literal["missing", "unreadable", "damaged", "changed", "backbone", "misfit", "internal"]
"""Why an expert cannot be loaded: its file is missing, cannot be opened, is not a valid expert, or is not the one that
was registered; it was cut against another backbone, or does not fit the model or the slots; or the server has a fault.
"""

_WORDS: dict[LoadFailure, str] = {
    "missing": "its file is missing",
    "unreadable": "its file cannot be read",
    "damaged": "its file is damaged",
    "changed": "its file has changed since it was registered",
    "backbone": "it was cut against another backbone",
    "misfit": "it does not fit this server's model or slots",
    "internal": "loading it failed",
}


class ExpertLoadError(RuntimeError):
    """An expert cannot be served. The message is one line and names what is wrong; it may hold paths.

    Attributes:
        expert: its name.
        reason: the kind of failure.
    """

    def __init__(self, message: str, expert: str = "", reason: LoadFailure = "internal"):
        super().__init__(message)
        self.expert = expert
        self.reason: LoadFailure = reason

    @property
    def retryable(self) -> bool:
        """Whether the same expert may load later without a restart, once its file is mended."""
        return self.reason not in {"backbone", "misfit"}

    @property
    def public(self) -> str:
        """The message for clients, without paths."""
        return f"expert {self.expert!r} cannot be served: {_WORDS[self.reason]}"


class GenerationMismatch(ExpertLoadError):  # noqa: N818
    """The registered expert is not of the generation that the caller expected."""


@dataclass(frozen=True)
class ExpertVersion:
    """An expert as it was registered: a request keeps the version it was admitted with.

    Attributes:
        name: how requests ask for it.
        path: its file, or its directory if it is a LoRA adapter.
        digest: SHA-256 of the file, or over both files of an adapter: the identity of its content.
        generation: counts registrations in this process, so that a caller can say which one it means.
        settings: what its requests follow in place of the backbone's; none while its file has not been read.
    """

    name: str
    path: Path
    digest: str
    generation: int
    settings: GenerationSettings = field(default_factory=GenerationSettings, compare=False)


@dataclass(frozen=True)
class ExpertInfo:
    """An expert and where it is.

    Attributes:
        version: what is registered.
        slot: its slot on the device, or None.
        on_host: whether it is ready in host memory.
        nbytes: size in a tier, or None while it has never been read.
    """

    version: ExpertVersion
    slot: int | None
    on_host: bool
    nbytes: int | None


_QUIET_SECONDS = 60.0

_log = logging.getLogger("overtone")


class FailureLog:
    """Logs one line for an expert and reason, and repeats it at most once a minute.

    Each request for a failing expert tries to load it again, so a line for every failure could fill the log. Called by
    one thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._said: dict[tuple[str, LoadFailure], float] = {}
        self._unsaid: dict[tuple[str, LoadFailure], int] = {}

    def report(self, error: ExpertLoadError) -> None:
        """Log a failure, with the number of equal ones since the last line."""
        key, now = (error.expert, error.reason), self._clock()
        if now - self._said.get(key, -_QUIET_SECONDS) < _QUIET_SECONDS:
            self._unsaid[key] = self._unsaid.get(key, 0) + 1
            return
        self._said[key] = now
        left_out = self._unsaid.pop(key, 0)
        more = f" ({left_out} more times since the last such line)" if left_out else ""
        fields = {"expert": error.expert, "reason": error.reason}
        _log.error("requests for an expert fail: %s%s", error, more, extra={"fields": fields})
