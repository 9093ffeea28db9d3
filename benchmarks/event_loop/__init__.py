"""How long one request may hold up everybody else's tokens: bodies that are expensive to read, beside a stream.

`bodies` makes them, `victim` reads the stream and `measure` sends one after the other.
"""

from benchmarks.event_loop.bodies import Case, cases
from benchmarks.event_loop.measure import LIMIT_SECONDS, Outcome, measure

__all__ = ["LIMIT_SECONDS", "Case", "Outcome", "cases", "measure"]
