"""How much of the server each API key has taken."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from serve.api.errors import key_limit


class KeyLoads:
    """Counts the unfinished choices of each key, so that one client cannot fill the queue alone."""

    def __init__(self) -> None:
        self._choices: Counter[str | None] = Counter()

    @contextlib.contextmanager
    def taken(self, key: str | None, choices: int, limit: int | None) -> Iterator[None]:
        """Count a request's choices while it runs.

        Args:
            key: the key's fingerprint; all requests without a key are one client.
            choices: of the request.
            limit: how many the key may have at once, None for no limit.

        Raises:
            ApiError: 429, the key would have more.
        """
        if limit is not None and (running := self._choices[key]) + choices > limit:
            raise key_limit(running, choices, limit)
        self._choices[key] += choices
        try:
            yield
        finally:
            self._choices[key] -= choices
            if not self._choices[key]:
                del self._choices[key]
