"""Label values that stay few, and the buckets of histograms: vLLM's, continued downward for small models."""

import threading

OTHER = "other"
_NAMED_OTHER = "other (expert)"
"""An expert that is really called "other"."""


class CappedNames:
    """The first `limit` distinct names label themselves, every later one is "other"."""

    def __init__(self, limit: int):
        self._limit = limit
        self._known: set[str] = set()
        self._lock = threading.Lock()  # the engine's, the loader's and the server's threads all count

    def label(self, name: str) -> str:
        """The value of the label for `name`; it never changes again."""
        if name == OTHER:
            name = _NAMED_OTHER
        if name in self._known:
            return name
        with self._lock:
            if len(self._known) >= self._limit and name not in self._known:
                return OTHER
            self._known.add(name)
            return name


TIME_TO_FIRST_TOKEN = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0),
    *(10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
SHORT_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
STEP_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STEP_EXPERTS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
PROBABILITY = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def token_counts(largest: int = 1 << 20) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, … up to `largest`."""
    counts: list[int] = []
    decade = 1
    while decade <= largest:
        counts += [step * decade for step in (1, 2, 5) if step * decade <= largest]
        decade *= 10
    return tuple(counts)
