"""How requests ended, and whether memory grows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

_DRAINING = 503


@dataclass
class Tally:
    """Counts of requests; every one that is sent ends as exactly one of these.

    Attributes:
        sent: by kind of load.
        answered: 200, and every choice came to its end.
        cancelled: this client went away, as it meant to.
        refused: by the error's code: 4xx with OpenAI's body, for an invalid request or a full queue.
        server_errors: by code: 5xx.
        wrong: descriptions of errors: a bad body that was accepted, a good one that was rejected, a broken reply.
        lost: by the failure's class: no reply, or one that broke off.
    """

    sent: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    cancelled: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    server_errors: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        """All that were sent."""
        return self.sent.total()

    @property
    def unaccounted(self) -> int:
        """Requests without an end: those that broke off, and those that nothing was noted of."""
        ended = self.answered + self.cancelled + self.refused.total() + self.server_errors.total() + self.wrong.total()
        return self.requests - ended

    def reply(self, kind: str, reply: httpx.Response, expected: frozenset[int]) -> None:
        """Note a whole reply, of which one of these statuses was expected."""
        if reply.status_code >= 500:
            self.server_errors[_code(reply)] += 1
        elif reply.status_code not in expected:
            self.wrong[f"{kind}: status {reply.status_code}, {_code(reply)}"] += 1
        elif reply.status_code >= 400:
            self.refused[_code(reply)] += 1
        else:
            self.answered += 1

    def failure(self, error: Exception) -> None:
        """Note a request whose connection failed."""
        self.lost[type(error).__name__] += 1

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries, ordered by name."""
        return {
            "requests": self.requests,
            "requests_by_kind": _ordered(self.sent),
            "answered": self.answered,
            "cancelled": self.cancelled,
            "errors": _ordered(self.refused + self.server_errors),
            "unexpected": _ordered(self.wrong),
            "server_errors": self.server_errors.total(),
            "lost_requests": self.unaccounted,
            "lost_by_kind": _ordered(self.lost),
        }


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _code(reply: httpx.Response) -> str:
    """The code of OpenAI's error body, or what is wrong with the body."""
    try:
        error = reply.json()["error"]
        return str(error["code"] or error["type"])
    except (ValueError, KeyError, TypeError):
        return f"{reply.status_code} without OpenAI's body"


_WARM_UP = 1 / 2
"""Share of the first samples that are left out, while caches and allocators fill."""


def slope_mb_per_minute(samples: Sequence[tuple[float, float]]) -> float:
    """Slope of the least-squares line through the samples after the warm-up.

    Args:
        samples: (seconds, bytes), in order.

    Returns:
        10⁶ bytes a minute; 0 if there are fewer than three samples.
    """
    later = samples[int(len(samples) * _WARM_UP) :]
    if len(later) < 3:
        return 0.0
    seconds, held = np.asarray(later, dtype=np.float64).T
    slope, _ = np.polyfit(seconds - seconds[0], held, 1)
    return float(slope) * 60 / 1e6
