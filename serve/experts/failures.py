"""The log of experts that fail to load."""

import logging
import time
from collections.abc import Callable

from serve.experts.version import ExpertLoadError, LoadFailure

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
