"""Label values that stay few."""

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
