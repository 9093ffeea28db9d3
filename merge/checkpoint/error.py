"""The error of this package."""

from collections.abc import Iterator
from contextlib import contextmanager


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, unsafe or does not fit. The message is one line.

    Attributes:
        faults: what is wrong, one by one; the message joins them.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class Faults:
    """Gathers faults, so that all of them are reported at once.

    Attributes:
        found: so far.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Take up what the block raises, and go on after it."""
        try:
            yield
        except CheckpointError as error:
            self.found.extend(error.faults)

    def settle(self) -> None:
        """Raise what was found.

        Raises:
            CheckpointError: there was something.
        """
        if self.found:
            raise CheckpointError(*self.found)
