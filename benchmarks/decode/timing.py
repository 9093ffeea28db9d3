"""The result of a run: the time of each token of each request, for the engine and for every peer."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.decode.cases import Case


@dataclass(frozen=True)
class Timing:
    """One run of a case.

    Attributes:
        arrivals: of each request, when each of its tokens came, in seconds since the batch was asked for.
    """

    arrivals: Sequence[Sequence[float]]

    @property
    def first_ms(self) -> float:
        """From asking to the last request's first token: the time that the prompts take."""
        return 1e3 * max(times[0] for times in self.arrivals)

    @property
    def steps_ms(self) -> list[float]:
        """Times between tokens while every request decodes.

        Prompts that do not fit into one step are computed over several, and requests whose prompt was early decode
        beside the others' and end before them: steps with such company, or with less, are left out.

        Raises:
            ValueError: the step does not exist.
        """
        last = max(self.arrivals, key=lambda times: times[0])
        end = min(times[-1] for times in self.arrivals)
        steps = [1e3 * (late - early) for early, late in pairwise(time for time in last if time <= end)]
        if not steps:
            raise ValueError(f"no step had all {len(self.arrivals)} requests: ask for more than {len(last)} tokens")
        return steps

    @property
    def step_ms(self) -> float:
        """Median of `steps_ms`."""
        return statistics.median(self.steps_ms)


Run = Callable[[Case, int], Timing]
"""Runs a case's requests together, each to a number of tokens, with new prompts."""
