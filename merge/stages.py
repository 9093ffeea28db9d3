"""How long the stages of a merge take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Measures stages that follow one another.

    Attributes:
        seconds: wall-clock time by stage, in their order.
    """

    def __init__(self) -> None:
        """Start with no stage."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Measure a block; blocks of one name add up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
