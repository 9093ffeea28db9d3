"""Runs of the engine and of its peers by name. A peer that fails is left out, and the others go on."""

from collections.abc import Callable, Mapping

from benchmarks.decode.cases import Case
from benchmarks.decode.timing import Run, Timing
from benchmarks.peers import PeerError


class Runs:
    """Everything that a benchmark measures in turn.

    llama.cpp ends with SIGILL on some processors that it was compiled for, after minutes of measuring the others: the
    report names such a peer with its error in place of its figures.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._runs: dict[str, Run] = {}
        self.left_out: dict[str, str] = {}
        """For each peer that failed, its error."""

    @property
    def names(self) -> list[str]:
        """Names of those that have not failed, in the order in which they were added."""
        return list(self._runs)

    def add(self, runs: Mapping[str, Run]) -> None:
        """Add runs by name."""
        self._runs |= runs

    def join(self, other: "Runs") -> None:
        """Add another's runs, and the errors of those that it left out."""
        self._runs |= other._runs
        self.left_out |= other.left_out

    def leave_out(self, name: str, error: PeerError) -> None:
        """Remove a peer and keep its error for the report."""
        self._say(f"{name} is left out: {error}")
        self._runs.pop(name, None)
        self.left_out[name] = str(error)

    def run(self, name: str, case: Case, tokens: int) -> Timing | None:
        """Run a case; None if the peer failed, which is then left out."""
        try:
            return self._runs[name](case, tokens)
        except PeerError as error:
            self.leave_out(name, error)
            return None

    def report(self) -> dict[str, dict[str, str]]:
        """The entry `left_out` of a report, if a peer failed."""
        return {"left_out": dict(self.left_out)} if self.left_out else {}
